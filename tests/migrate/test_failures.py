"""Failure before the commit leaves the source running and nothing at the destination."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.migrate.conftest import EDGES, Lab, Running
from tests.migrate.test_strategies import state_is_right
from whimbrel.lab import commands
from whimbrel.model.errors import Conflict, WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.network import netns

SOURCE, DESTINATION = EDGES[0], EDGES[1]
SOURCE_POINTS = [
    "prepare",
    "rounds",
    "freeze",
    "freeze.hold",
    "freeze.stop",
    "freeze.dump",
    "freeze.pages",
    "freeze.restore",
]
RECEIVE_POINTS = ["receive.setup-namespaces", "receive.post-restore", "receive.pre-resume", "receive.ready"]


class Attempt:
    """A migration started in the background, to be disturbed."""

    def __init__(self, running: Running) -> None:
        self.record: MigrationRecord | None = None
        self.error: WhimbrelError | None = None
        self._running = running
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.record = self._running.migrate(DESTINATION)
        except WhimbrelError as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(timeout=60)

    def wait(self) -> MigrationRecord:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "the migration neither ended nor failed"
        assert self.error is None, self.error
        assert self.record is not None
        return self.record


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


def disturb(running: Running, point: str, strike: Callable[[], None]) -> MigrationRecord:
    lab = running.lab
    lab.arm(point)
    attempt = Attempt(running)
    try:
        lab.wait_reached(point)
        strike()
    finally:
        lab.disarm()
        attempt.join()
    return attempt.wait()


def source_is_whole(running: Running, count: int) -> None:
    assert running.node == SOURCE
    assert running.user.ask("count")[0] == count + 1, "same connection, same counter"
    assert running.user.echo(b"here") == b"here"
    assert state_is_right(running)
    writes = running.user.ask("count")[1]
    time.sleep(0.1)
    assert running.user.ask("count")[1] > writes, "all threads run on"


def destination_is_clean(running: Running) -> None:
    if running.lab.agent_pid(DESTINATION) == 0:
        running.lab.restart_agent(DESTINATION)
    deadline = time.monotonic() + 10
    while left := running.lab.leftovers(DESTINATION, running.name):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize("point", [*SOURCE_POINTS, *RECEIVE_POINTS])
def test_destination_agent_killed(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    lab = running.lab
    record = disturb(running, point, lambda: os.kill(lab.agent_pid(DESTINATION), signal.SIGKILL))
    assert record.outcome is Outcome.ROLLED_BACK
    assert record.error
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize(
    "point", ["rounds", "freeze.hold", "freeze.stop", "freeze.dump", "freeze.pages", "freeze.restore"]
)
def test_criu_killed_at_the_source(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")

    def strike() -> None:
        pids = criu_pids(running.lab, SOURCE)
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    record = disturb(running, point, strike)
    if point in ("freeze.pages", "freeze.restore"):
        # The dump is whole and the tree latched: CRIU is not needed any more, and must not be missed.
        assert record.outcome is Outcome.DONE
        assert running.user.ask("count")[0] == count + 1
        assert state_is_right(running)
        return
    assert record.outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize("point", ["rounds", "freeze.dump", *RECEIVE_POINTS[:-1]])
def test_criu_killed_at_the_destination(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")

    def strike() -> None:
        pids = criu_pids(running.lab, DESTINATION)
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    record = disturb(running, point, strike)
    assert record.outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize("point", ["rounds", "freeze.stop", "freeze.pages", "freeze.restore", "receive.pre-resume"])
def test_link_cut(running: Running, point: str) -> None:
    """The underlay between the two edges dies without a word; the users' path does not."""
    count, _ = running.user.ask("count")
    router = commands.node_namespace("router", lab_dir=running.lab.directory)

    def rule(verb: str) -> None:
        for a, b in (("192.168.101.0/24", "192.168.102.0/24"), ("192.168.102.0/24", "192.168.101.0/24")):
            argv = ["ip", "rule", verb, "from", a, "to", b, "blackhole"]
            netns.call(router, lambda argv=argv: subprocess.run(argv, check=True, capture_output=True))

    try:
        record = disturb(running, point, lambda: rule("add"))
        assert record.outcome is Outcome.ROLLED_BACK
        source_is_whole(running, count)
    finally:
        rule("del")
    destination_is_clean(running)


@pytest.mark.parametrize(
    "point", ["prepare", "rounds", "freeze.stop", "freeze.pages", "freeze.restore", "receive.pre-resume"]
)
def test_cancel(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    controller = running.lab.controller

    def strike() -> None:
        (record,) = [item for item in controller.migrations() if item.outcome is Outcome.RUNNING]
        controller.cancel(record.id)

    record = disturb(running, point, strike)
    assert record.outcome is Outcome.CANCELLED
    source_is_whole(running, count)
    destination_is_clean(running)


def test_cancel_twice(running: Running) -> None:
    """The second must not cut the undo of the first short."""
    count, _ = running.user.ask("count")
    controller = running.lab.controller

    def strike() -> None:
        (record,) = [item for item in controller.migrations() if item.outcome is Outcome.RUNNING]
        controller.cancel(record.id)
        with contextlib.suppress(WhimbrelError):  # it may have ended by now
            controller.cancel(record.id)

    assert disturb(running, "freeze.pages", strike).outcome is Outcome.CANCELLED
    source_is_whole(running, count)
    destination_is_clean(running)


def test_a_second_migration_is_refused(running: Running) -> None:
    running.lab.arm("rounds")
    attempt = Attempt(running)
    running.lab.wait_reached("rounds")
    with pytest.raises(Conflict, match="migrat"):
        running.lab.controller.migrate(running.name, EDGES[2])
    running.lab.disarm()
    assert attempt.wait().outcome is Outcome.DONE


@pytest.mark.parametrize("point", ["freeze.pages", "after-go"])
def test_source_agent_killed_and_restarted(running: Running, point: str) -> None:
    """Whatever the restarted agent finds, one side runs, and only one."""
    count, _ = running.user.ask("count")
    running.lab.arm(point)
    attempt = Attempt(running)
    running.lab.wait_reached(point)
    os.kill(running.lab.agent_pid(SOURCE), signal.SIGKILL)
    running.lab.disarm()
    running.lab.restart_agent(SOURCE)
    attempt.join()
    assert running.user.ask("count")[0] == count + 1
    deadline = time.monotonic() + 10
    expected = SOURCE if point == "freeze.pages" else DESTINATION
    while [status.node for status in running.lab.controller.services()] != [expected]:
        assert time.monotonic() < deadline, running.lab.controller.services()
        time.sleep(0.1)
    assert state_is_right(running)


@pytest.mark.parametrize("point", ["receive.committed", "receive.fill"])
def test_destination_agent_killed_after_the_commit(running: Running, point: str) -> None:
    """The pages are not the agent's: the service runs at the destination, and the restarted agent adopts it."""
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: os.kill(running.lab.agent_pid(DESTINATION), signal.SIGKILL))
    assert record.outcome in (Outcome.DONE, Outcome.FAILED)
    assert running.user.ask("count")[0] == count + 1
    running.lab.restart_agent(DESTINATION)
    deadline = time.monotonic() + 10
    while [status.node for status in running.lab.controller.services()] != [DESTINATION]:
        assert time.monotonic() < deadline, running.lab.controller.services()
        time.sleep(0.1)
    assert state_is_right(running)
