"""Start and stop the lab's processes.

One is known by a file with its id *and* its start time, so that a process which merely got the same id later
is never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from whimbrel.lab.config import agent_config, controller_config, controller_socket
from whimbrel.lab.routes import Wire
from whimbrel.lab.topology import CONTROLLER, Topology
from whimbrel.model.errors import StepFailed, WhimbrelError
from whimbrel.network import netns
from whimbrel.network.shaping import Relay
from whimbrel.wire.calls import GetNode
from whimbrel.wire.rpc import Peer

ANSWER_TIMEOUT_S = 20.0
STARTING_S = 2.0  # more for each agent: they share the processors
STOP_TIMEOUT_S = 5.0
POLL_S = 0.05
COMMAND = (sys.executable, "-m", "whimbrel")


@dataclass(frozen=True)
class Process:
    """A process to be: `namespace` is where it runs, `directory` where its pid file and log are."""

    name: str
    argv: tuple[str, ...]
    namespace: Path
    directory: Path

    @property
    def pid_file(self) -> Path:
        return self.directory / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"


def lab_processes(topology: Topology, lab_dir: Path) -> tuple[Process, ...]:
    """All agents, then the controller."""
    agents = [
        Process(
            "agent",
            (*COMMAND, "agent", "--config", str(agent_config(lab_dir, site.name))),
            topology.namespace_path(site.name),
            lab_dir / site.name,
        )
        for site in topology.sites
    ]
    controller = Process(
        "controller",
        (*COMMAND, "controller", "--config", str(controller_config(lab_dir))),
        topology.namespace_path(CONTROLLER),
        lab_dir,
    )
    return (*agents, controller)


def _state_and_start(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return fields[0], int(fields[19])


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 when there is none (or only its zombie)."""
    state, started = _state_and_start(pid)
    return 0 if state in "ZX" else started


def start(process: Process, *, pass_fds: Sequence[int] = ()) -> int:
    """Start it detached in its namespace, write its pid file; returns the pid."""
    process.directory.mkdir(parents=True, exist_ok=True)

    def spawn() -> int:
        # a child has the namespace of the thread that starts it
        with process.log.open("ab") as log:
            child = subprocess.Popen(
                process.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=pass_fds,
            )
        # ours to watch by its pid file, not by this object: it may outlive us
        child.returncode = 0
        return child.pid

    pid = netns.call(process.namespace, spawn)
    process.pid_file.write_text(f"{pid} {start_time(pid)}\n")
    return pid


def read_pid(pid_file: Path) -> int:
    """The pid if that very process is alive, else 0."""
    try:
        pid, started = (int(word) for word in pid_file.read_text().split())
    except (FileNotFoundError, ValueError):
        return 0
    state, now = _state_and_start(pid)
    if now != started:
        return 0
    if state == "Z":
        with contextlib.suppress(ChildProcessError):  # reap it, if it was our own child
            os.waitpid(pid, os.WNOHANG)
    return 0 if state in "ZX" else pid


def stop(pid_files: Iterable[Path]) -> None:
    """End the processes together: SIGTERM, after `STOP_TIMEOUT_S` SIGKILL; their pid files go. Safe to repeat."""
    _stop(pid_files, STOP_TIMEOUT_S, (signal.SIGTERM, signal.SIGKILL))


def stop_at_once(pid_files: Iterable[Path]) -> None:
    """The same by SIGKILL alone, for processes that have nothing to put in order."""
    _stop(pid_files, STOP_TIMEOUT_S, (signal.SIGKILL,))


def _stop(pid_files: Iterable[Path], timeout_s: float, signals: tuple[signal.Signals, ...]) -> None:
    files = list(pid_files)
    for number in signals:
        for file in files:
            _signal(file, number)
        deadline = time.monotonic() + timeout_s
        while any(read_pid(file) for file in files) and time.monotonic() < deadline:
            time.sleep(0.01)
    alive = [str(read_pid(file)) for file in files if read_pid(file)]
    if alive:
        raise WhimbrelError(f"processes {', '.join(alive)} of the lab do not end, not even by SIGKILL")
    for file in files:
        file.unlink(missing_ok=True)


def _signal(pid_file: Path, number: signal.Signals) -> None:
    pid = read_pid(pid_file)
    if not pid:
        return
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            if read_pid(pid_file):  # still the same one, now that we hold it
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def relay_directory(lab_dir: Path) -> Path:
    return lab_dir / "links"


def start_relays(topology: Topology, lab_dir: Path, relays: Sequence[tuple[Wire, Relay]]) -> None:
    """Start the relays of links; until then these links carry nothing."""
    with contextlib.ExitStack() as handed_over:
        for _, relay in relays:
            handed_over.callback(relay.close)
        for wire, relay in relays:
            where = topology.namespace_path(wire.a.node)
            start(Process(wire.name, relay.argv, where, relay_directory(lab_dir)), pass_fds=relay.fds)


def wait_until_ready(topology: Topology, lab_dir: Path, progress: Callable[[str], None]) -> None:
    """Until every agent answers a call from the controller's namespace, and the controller its API.

    Raises StepFailed with the last line that a process wrote, when it ended or is too slow."""
    agents, controller = lab_processes(topology, lab_dir)[:-1], lab_processes(topology, lab_dir)[-1]
    deadline = time.monotonic() + ANSWER_TIMEOUT_S + STARTING_S * len(agents)
    here = topology.namespace_path(CONTROLLER)
    for site, process in zip(topology.sites, agents, strict=True):
        endpoint = topology.endpoint(site)

        def agent_answers(host: str = endpoint.host, port: int = endpoint.port, name: str = site.name) -> bool:
            return netns.call(here, lambda: asyncio.run(_agent_answers(name, host, port)))

        _wait_for(process, f"agent of {site.name}", agent_answers, deadline)
        progress(f"agent of {site.name} answers")
    _wait_for(controller, "controller", lambda: controller_answers(lab_dir), deadline)
    progress("controller answers")


def _wait_for(process: Process, what: str, answers: Callable[[], bool], deadline: float) -> None:
    while not answers():
        if not read_pid(process.pid_file):
            raise StepFailed(f"the {what} ended while starting: {_last_line(process.log)}")
        if time.monotonic() > deadline:
            raise StepFailed(f"the {what} does not answer in time: {_last_line(process.log)}")
        time.sleep(POLL_S)


async def _agent_answers(name: str, host: str, port: int) -> bool:
    try:
        async with Peer(name, host, port, connect_timeout_s=1.0) as peer:
            await peer.call(GetNode(), timeout_s=5.0)
    except WhimbrelError:
        return False
    return True


def controller_answers(lab_dir: Path) -> bool:
    """Any answer over HTTP counts."""
    transport = httpx.HTTPTransport(uds=str(controller_socket(lab_dir)), verify=False)  # no TLS here
    try:
        with httpx.Client(transport=transport, timeout=2.0) as client:
            client.get("http://controller/")
    except httpx.HTTPError:
        return False
    return True


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return lines[-1].strip() if lines else "it wrote nothing"
