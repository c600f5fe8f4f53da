"""Start a migration, stop it at a point, strike at something, and look at what became of both sides."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.migrate.conftest import EDGES, Lab, Running, Target
from tests.migrate.test_strategies import state_is_right
from whimbrel.lab import commands
from whimbrel.migrate.journal import Journal
from whimbrel.migrate.receive import AT_WORK
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome, Progress
from whimbrel.network import netns
from whimbrel.runtime.cgroups import Cgroup

SOURCE, DESTINATION = EDGES[0], EDGES[1]
# as /proc/net/tcp writes them: the state, an address with its first byte last, a port
ESTABLISHED, AGENT_PORT = "01", f":{7411:04X}"
EDGE_ENDS = {bytes((subnet, 168, 192)).hex().upper() for subnet in (101, 102)}


class Attempt:
    """A migration started in the background, to be disturbed."""

    def __init__(self, running: Target, strategy: str = "hybrid", bandwidth_bps: float = 0.0) -> None:
        self.record: MigrationRecord | None = None
        self.error: WhimbrelError | None = None
        self.news: list[Progress] = []
        self._running, self._strategy, self._bandwidth_bps = running, strategy, bandwidth_bps
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.record = self._running.lab.controller.migrate(
                self._running.name,
                DESTINATION,
                self._strategy,
                bandwidth_bps=self._bandwidth_bps,
                on_progress=self.news.append,
            )
        except WhimbrelError as error:
            self.error = error

    def told(self, words: str) -> bool:
        return any(words in news.detail for news in self.news)

    def join(self) -> None:
        self._thread.join(timeout=60)

    def wait(self) -> MigrationRecord:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "the migration neither ended nor failed"
        assert self.error is None, self.error
        assert self.record is not None
        return self.record


@contextlib.contextmanager
def held_at(running: Target, point: str, strategy: str = "hybrid", bandwidth_bps: float = 0.0) -> Iterator[Attempt]:
    """Inside, a migration stands at the point; at the end of the block it goes on and is waited for."""
    lab = running.lab
    until(lambda: not receiver_pids(lab, DESTINATION), "the last migration's receiving process does not end")
    lab.arm(point)
    attempt = Attempt(running, strategy, bandwidth_bps)
    try:
        lab.wait_reached(point)
        yield attempt
    finally:
        lab.disarm()
        attempt.join()


def disturb(
    running: Target, point: str, strike: Callable[[], object], strategy: str = "hybrid", bandwidth_bps: float = 0.0
) -> MigrationRecord:
    with held_at(running, point, strategy, bandwidth_bps) as attempt:
        strike()
    return attempt.wait()


# --- victims --------------------------------------------------------------------------------------------------
def criu_pids(lab: Lab, node: str) -> list[int]:
    """CRIU workers of one node: they alone see a directory of the node's tmpfs as /run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            mounts = (entry / "mountinfo").read_text().splitlines() if entry.name.isdigit() else []
        except OSError:
            continue
        runs = [line for line in mounts if line.split()[4] == "/run"]
        if runs and _same_device(runs[-1], lab.state_dir(node) / "run"):
            found.append(int(entry.name))
    return found


def _same_device(mountinfo_line: str, directory: Path) -> bool:
    major, minor = mountinfo_line.split()[2].split(":")
    return os.makedev(int(major), int(minor)) == directory.stat().st_dev


def receiver_pids(lab: Lab, node: str) -> list[int]:
    """The receiving processes at work in a node's namespace, whoever their parent is; not the one that waits."""
    inside = commands.node_namespace(node, lab_dir=lab.directory).stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            name = (entry / "comm").read_text().strip() if entry.name.isdigit() else ""
            if name == AT_WORK and (entry / "ns/net").stat().st_ino == inside:
                found.append(int(entry.name))
    return found


def kill_all(pids: list[int]) -> None:
    assert pids, "there is nobody to kill"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in pids), "what was killed ends")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill_agent(lab: Lab, node: str) -> None:
    kill_all([lab.agent_pid(node)])


class Link:
    """The underlay between the first two edges. It dies without a word; the users' paths do not."""

    def __init__(self, lab: Lab) -> None:
        self._router = commands.node_namespace("router", lab_dir=lab.directory)
        self._whole = True

    def cut(self) -> None:
        self._rules("add")
        self._whole = False

    def mend(self) -> None:
        if not self._whole:
            self._rules("del")
            self._whole = True

    def _rules(self, verb: str) -> None:
        for a, b in (("192.168.101.0/24", "192.168.102.0/24"), ("192.168.102.0/24", "192.168.101.0/24")):
            argv = ["ip", "rule", verb, "from", a, "to", b, "blackhole"]
            netns.call(self._router, lambda argv=argv: subprocess.run(argv, check=True, capture_output=True))


@contextlib.contextmanager
def link_of(lab: Lab) -> Iterator[Link]:
    link = Link(lab)
    try:
        yield link
    finally:
        link.mend()


# --- what can be seen from outside ---------------------------------------------------------------------------
def received_bytes(lab: Lab, node: str) -> int:
    """All that has come in on the links of a node's namespace."""

    def count() -> int:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        fields = (line.partition(":") for line in lines)
        return sum(int(rest.split()[0]) for name, _, rest in fields if name.strip() != "lo")

    return netns.call(commands.node_namespace(node, lab_dir=lab.directory), count)


def open_streams(lab: Lab, node: str) -> list[str]:
    """The established TCP connections of a node that carry pages or files between the first two edges: all between
    these two but the agents' calls."""

    def found() -> list[str]:
        rows = [line.split() for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]]
        return [
            f"{local} {remote}"
            for _, local, remote, state, *_ in rows
            if state == ESTABLISHED and {local[2:8], remote[2:8]} == EDGE_ENDS and AGENT_PORT not in local + remote
        ]

    return netns.call(commands.node_namespace(node, lab_dir=lab.directory), found)


# --- what must be true afterwards -----------------------------------------------------------------------------
def until(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def cancel_it(running: Target) -> None:
    running.lab.controller.cancel(live_record(running).id)


def journal_step(lab: Lab, node: str) -> str:
    """How far the one migration that goes out from a node has come, by the node's journal; "" without one."""
    return next((entry.step for entry in Journal(lab.state_dir(node) / "run/journal").entries()), "")


def is_frozen(node: str, service: str) -> bool:
    """By the kernel's word: the group's processes are there, and none of them can run."""
    group = Cgroup(f"/whimbrel/{node}/{service}")
    files = [folder / name for folder in group.folders for name in ("freezer.state", "cgroup.freeze")]
    states = {file.read_text().strip() for file in files if file.exists()}
    return bool(group.pids()) and bool({"FROZEN", "1"} & states)


def record_of_the_last(running: Target) -> MigrationRecord:
    """Of the newest migration, when it is over."""
    controller = running.lab.controller
    until(lambda: controller.migrations()[0].outcome is not Outcome.RUNNING, "the migration does not end", 30)
    return controller.migrations()[0]


def live_record(running: Target) -> MigrationRecord:
    (record,) = [item for item in running.lab.controller.migrations() if item.outcome is Outcome.RUNNING]
    return record


def source_is_whole(running: Running, count: int) -> None:
    """Same connection, same counter, all memory, all threads."""
    assert running.node == SOURCE
    goes_on(running, count)


def goes_on(running: Running, count: int) -> int:
    """The service, wherever it runs, has its connection, its counter and its memory. Returns its last count."""
    assert running.user.ask("count")[0] == count + 1, "same connection, same counter"
    assert running.user.echo(b"here") == b"here"
    assert state_is_right(running)
    last, writes = running.user.ask("count")
    assert last == count + 2
    while True:
        last, later = running.user.ask("count")
        if later > writes:  # the writing thread runs on as well
            return last


def destination_is_clean(running: Target) -> None:
    lab = running.lab
    if lab.agent_pid(DESTINATION) == 0:
        lab.restart_agent(DESTINATION)
    try:
        until(lambda: not left_there(lab, running.name), "something is left at the destination")
    except AssertionError as error:
        raise AssertionError(f"{error}: {left_there(lab, running.name)}") from None


def left_there(lab: Lab, service: str) -> list[str]:
    receivers = [f"receiving process {pid}" for pid in receiver_pids(lab, DESTINATION)]
    return lab.leftovers(DESTINATION, service) + receivers


def runs_only_at(running: Target, node: str) -> None:
    def nodes() -> list[str]:
        return [status.node for status in running.lab.controller.services() if status.spec.name == running.name]

    until(lambda: nodes() == [node], f"it does not run at {node} alone: {nodes()}")
