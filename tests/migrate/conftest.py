"""A lab of its own for the migration tests: real agents, real CRIU, a real service, and clients at a user's."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from whimbrel.controller.client import ControllerClient
from whimbrel.lab import commands, processes
from whimbrel.migrate.failpoints import inherited
from whimbrel.migrate.staging.shared import FOLDER
from whimbrel.migrate.words import beside_words
from whimbrel.model.errors import Conflict, Unreachable
from whimbrel.model.migration import MigrationRecord
from whimbrel.network import netns
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.workloads.catalogue import build_workload

# Labs are known by names all over the host: other letters let two runs of these tests, or the workers of one, stand
# side by side.
PREFIX = os.environ.get("WHIMBREL_TEST_LAB", "tm") + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
EDGES = (f"{PREFIX}-1", f"{PREFIX}-2", f"{PREFIX}-3")
GATEWAYS = (f"{PREFIX}-gw-1", f"{PREFIX}-gw-2")
PORT = 7000
READY_TIMEOUT_S = 10.0
MORE_ENV: tuple[str, ...] = ()


@dataclass
class Lab:
    directory: Path
    failpoints: Path
    image: str
    controller: ControllerClient

    def state_dir(self, node: str) -> Path:
        return self.directory / node

    def agent_pid(self, node: str) -> int:
        return processes.read_pid(self.state_dir(node) / "agent.pid")

    def restart_agent(self, node: str) -> None:
        self.start_agent(node)
        self._wait_up(node)

    def start_agent(self, node: str) -> None:
        self._start(self.state_dir(node))

    def kill_controller(self) -> None:
        pid = processes.read_pid(self.directory / "controller.pid")
        os.kill(pid, signal.SIGKILL)
        while processes.read_pid(self.directory / "controller.pid"):
            time.sleep(0.01)

    def start_controller(self) -> None:
        self._start(self.directory)
        self._wait_up(*EDGES)

    def _start(self, directory: Path) -> None:
        plan = commands.recorded(self.directory)
        assert plan is not None
        (process,) = [one for one in processes.lab_processes(plan, self.directory) if one.directory == directory]
        with inherited(self.failpoints):
            processes.start(process)

    def _wait_up(self, *nodes: str) -> None:
        deadline = time.monotonic() + 20
        while not set(nodes) <= self._up():
            assert time.monotonic() < deadline, f"of {nodes} not all come back"
            time.sleep(0.1)

    def _up(self) -> set[str]:
        try:
            return {view.name for view in self.controller.nodes() if view.up}
        except Unreachable:
            return set()

    def arm(self, point: str) -> None:
        (self.failpoints / point).touch()

    def wait_reached(self, point: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not (self.failpoints / f"{point}.reached").exists():
            assert time.monotonic() < deadline, f"nobody came to {point}"
            time.sleep(0.005)

    def disarm(self) -> None:
        for path in self.failpoints.iterdir():
            path.unlink()

    def leftovers(self, node: str, service: str) -> list[str]:
        """Whatever a node still has of a service that must not be there."""
        state = self.state_dir(node)
        found = [str(path) for path in (state / "services" / service, state / "netns" / service) if path.exists()]
        # after a commit the destination's words may stay until its source has asked: files of some bytes
        for folder in (state / "run").glob("incoming-*"):
            found += [str(entry) for entry in beside_words(folder)]
        found += [str(path) for path in (state / "run/runc").glob(service)]
        found += [str(folder) for folder in Cgroup(f"/whimbrel/{node}/{service}").folders if folder.exists()]
        found += [str(path) for path in (state / "run").glob("dump-*")]
        if not _is_stopped(processes.read_pid(state / "storage.pid")):  # who looks at storage that hangs, hangs
            found += [str(stage) for stage in (state / "shared" / FOLDER).glob("*")]
        found += [f"process {pid} sends files" for pid in programs(self, node, "sendfiles")]
        mounts = Path("/proc/self/mountinfo").read_text()
        found += [line.split()[4] for line in mounts.splitlines() if f"{state}/services/{service}/" in line]
        return found


def _is_stopped(pid: int) -> bool:
    return pid != 0 and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def programs(lab: Lab, node: str, module: str) -> list[int]:
    """The processes in a node's namespace that run ``whimbrel.migrate.MODULE``, by themselves or out of the nursery."""
    inside = commands.node_namespace(node, lab_dir=lab.directory).stat().st_ino
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            is_it = f"whimbrel.migrate.{module}".encode() in words or (entry / "comm").read_text().strip() == module
            if is_it and (entry / "ns/net").stat().st_ino == inside:
                found.append(int(entry.name))
        except OSError:  # it has just ended
            continue
    return found


class User:
    """One TCP connection and one UDP socket from the user's namespace to the service."""

    def __init__(self, lab: Lab, address: str) -> None:
        self.address = address
        where = commands.node_namespace("ue-1", lab_dir=lab.directory)
        self.tcp = netns.call(where, lambda: socket.create_connection((address, PORT), timeout=15))
        self.udp = netns.call(where, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE: the user loses nothing itself
        self.udp.settimeout(5)
        self.udp.connect((address, PORT))
        self._buffer = self.tcp.makefile("rb")

    def ask(self, request: str) -> tuple[int, int]:
        self.tcp.sendall(request.encode() + b"\n")
        first, second = self._buffer.readline().split()
        return int(first), int(second)

    def echo(self, text: bytes) -> bytes:
        self.udp.send(text)
        return self.udp.recv(2048)

    def close(self) -> None:
        self._buffer.close()
        self.tcp.close()
        self.udp.close()


TOPOLOGY = f"""
name = "migration-tests-{PREFIX}"
prefix = "{PREFIX}-"
overlay_subnet = "10.77.0.0/16"
controller_subnet = "192.168.100.0/24"
[storage]
name = "{PREFIX}-nas"
subnet = "192.168.120.0/24"
[[edges]]
name = "{PREFIX}-1"
subnet = "192.168.101.0/24"
[[edges]]
name = "{PREFIX}-2"
subnet = "192.168.102.0/24"
[[edges]]
name = "{PREFIX}-3"
subnet = "192.168.103.0/24"
[[gateways]]
name = "{PREFIX}-gw-1"
subnet = "192.168.111.0/24"
overlay_address = "10.77.0.1"
access_subnet = "10.99.0.0/24"
[[gateways]]
name = "{PREFIX}-gw-2"
subnet = "192.168.112.0/24"
overlay_address = "10.77.0.2"
access_subnet = "10.99.1.0/24"
[[users]]
name = "ue-1"
attached = ["{PREFIX}-gw-1", "{PREFIX}-gw-2"]
"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("moving containers needs root")
    base = tmp_path_factory.mktemp("migration-lab")
    topology = base / "topology.toml"
    topology.write_text(TOPOLOGY)
    failpoints = base / "failpoints"
    failpoints.mkdir()
    image = build_workload("demo").reference
    directory = Path(f"/var/lib/whimbrel-tests/{PREFIX}/migration")
    commands.lab_down(lab_dir=directory)
    with inherited(failpoints):
        commands.lab_up(topology, lab_dir=directory)
    try:
        with ControllerClient(f"unix:{directory}/controller.sock") as controller:
            yield Lab(directory, failpoints, image, controller)
    finally:
        commands.lab_down(lab_dir=directory)


@dataclass
class Target:
    """A service on the lab."""

    lab: Lab
    name: str

    @property
    def node(self) -> str:
        return self.lab.controller.service(self.name).node


@dataclass
class Running(Target):
    """A service on the lab, its memory size, and a user that talks to it."""

    memory_mb: int
    user: User

    def migrate(self, to: str, strategy: str = "hybrid") -> MigrationRecord:
        return self.lab.controller.migrate(self.name, to, strategy)


@pytest.fixture
def running(lab: Lab) -> Iterator[Running]:
    """The demo service with 24 MB on the first edge, talked to by a user; removed afterwards."""
    memory_mb = 24
    status = lab.controller.run_service(
        "mover", lab.image, EDGES[0], env=[f"MEMORY_MB={memory_mb}", *MORE_ENV], ports=[f"{PORT}/tcp", f"{PORT}/udp"]
    )
    user = user_when_ready(lab, status.spec.address.split("/")[0])
    try:
        yield Running(lab, "mover", memory_mb, user)
    finally:
        user.close()
        lab.disarm()
        for log in sorted(lab.directory.glob(f"{PREFIX}-[123]/*.log")):
            print(f"--- {log}\n{log.read_text()[-1500:]}")  # shown by pytest when the test has failed
        if processes.read_pid(lab.directory / "controller.pid") == 0:
            lab.start_controller()
        for node in (*EDGES, *GATEWAYS):
            if lab.agent_pid(node) == 0:
                lab.restart_agent(node)
        _remove(lab, "mover")


def _remove(lab: Lab, name: str) -> None:
    """Remove the service; a migration that a failed test left behind may take a moment to end."""
    deadline = time.monotonic() + 40
    while True:
        try:
            return lab.controller.remove_service(name)
        except Conflict:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def user_when_ready(lab: Lab, address: str) -> User:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            return User(lab, address)
        except OSError:
            assert time.monotonic() < deadline, "the service does not answer"
            time.sleep(0.05)
