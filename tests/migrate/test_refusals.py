"""What cannot cross is refused before the freeze, in one line, and goes on untouched."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.migrate.conftest import EDGES, PORT, Lab, Running
from whimbrel.lab import commands
from whimbrel.model.errors import Refused
from whimbrel.model.migration import Outcome
from whimbrel.network import netns

USERFAULTFD = "fd = ctypes.CDLL(None).syscall(323, 1)"
IO_URING = "fd = ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120))"
# Children share their parent's memory, yet each of them would cross with a copy of its own.
CHILDREN = "memory = bytearray(b'x') * (64 << 20); fd = [os.fork() or time.sleep(3600) for _ in range({count})][0]"
SLOW_TO_ACCEPT = (
    "import signal, socket; server = socket.create_server(('', 7000)); taken = []; fd = server.fileno(); "
    "signal.signal(signal.SIGUSR1, lambda *_: (taken.append(server.accept()), print('accepted', flush=True)))"
)
HOLD = """
import ctypes, os, time
{what}
assert fd >= 0
print('holds', flush=True)
time.sleep(3600)
"""


def in_mounts_of(pid: int, call: str) -> None:
    """A call of the C library's in a process's mount namespace, where there is no program to run."""
    code = f"import ctypes, os; libc = ctypes.CDLL(None); fd = os.open('/proc/{pid}/ns/mnt', 0); "
    code += f"assert libc.setns(fd, 0) == 0; assert {call} == 0"
    subprocess.run([sys.executable, "-c", code], check=True)


@contextmanager
def holder(lab: Lab, what: str) -> Iterator[str]:
    """A service that has done `what`, a line of Python that leaves a number in `fd`."""
    lab.controller.run_service("holder", lab.image, EDGES[0], args=["/usr/bin/python3", "-c", HOLD.format(what=what)])
    try:
        logged(lab, "holder", "holds")
        yield "holder"
    finally:
        lab.controller.remove_service("holder")


def logged(lab: Lab, service: str, word: str) -> None:
    deadline = time.monotonic() + 20
    while word not in lab.controller.logs(service):
        assert time.monotonic() < deadline, lab.controller.logs(service)
        time.sleep(0.05)


def is_refused(lab: Lab, service: str, words: str, strategy: str = "auto") -> None:
    """In one line, before anything is prepared; the service runs on as it is."""
    pid = lab.controller.service(service).pid
    record = lab.controller.migrate(service, EDGES[1], strategy)
    assert (record.outcome, record.error_code) == (Outcome.ROLLED_BACK, Refused.code), "whoever refused it, and when"
    assert words in record.error
    assert "\n" not in record.error
    assert {phase.name for phase in record.phases} <= {"preflight"}
    assert lab.controller.service(service).pid == pid
    assert lab.leftovers(EDGES[1], service) == []


@pytest.mark.parametrize(("what", "words"), [(USERFAULTFD, "userfaultfd"), (IO_URING, "io_uring")])
def test_what_criu_cannot_dump_is_refused(lab: Lab, what: str, words: str) -> None:
    with holder(lab, what) as service:
        is_refused(lab, service, words)


def test_a_connection_that_waits_to_be_accepted_is_not_lost(lab: Lab) -> None:
    """CRIU cannot carry it, and would leave it out only on request: nobody requests that. So the service does not move
    as long as one waits."""
    with holder(lab, SLOW_TO_ACCEPT) as service:
        status = lab.controller.service(service)
        at = (status.spec.address.split("/")[0], PORT)
        where = commands.node_namespace("ue-1", lab_dir=lab.directory)
        with netns.call(where, lambda: socket.create_connection(at, timeout=15)) as waiting:
            record = lab.controller.migrate(service, EDGES[1])
            assert record.outcome is Outcome.ROLLED_BACK
            assert "In-flight connection" in record.error
            os.kill(status.pid, signal.SIGUSR1)
            logged(lab, service, "accepted")
            assert lab.controller.migrate(service, EDGES[1]).outcome is Outcome.DONE
            waiting.settimeout(0.5)
            with pytest.raises(TimeoutError):  # it is there still: neither ended nor reset
                waiting.recv(1)


def test_too_little_memory_there_is_refused(lab: Lab) -> None:
    count = psutil.virtual_memory().available // (2 * (64 << 20)) + 1
    with holder(lab, CHILDREN.format(count=count)) as service:
        is_refused(lab, service, "of memory free, the migration needs")


def test_too_little_disk_there_is_refused(running: Running) -> None:
    state = running.lab.state_dir(EDGES[0])
    file = state / "services" / running.name / "layer/upper/large"
    assert file.parent.is_dir()
    try:
        subprocess.run(["fallocate", "-l", str(shutil.disk_usage(state).free * 55 // 100), file], check=True)
        is_refused(running.lab, running.name, "of disk free, the migration needs")
    finally:
        file.unlink(missing_ok=True)
    assert running.user.ask("count")[0] == 1


def test_a_strategy_without_room_to_stage_is_refused_with_one_that_needs_none(running: Running) -> None:
    run = running.lab.state_dir(EDGES[0]) / "run"
    usage = shutil.disk_usage(run)
    try:
        subprocess.run(["mount", "-o", f"remount,size={usage.used + (16 << 20)}", run], check=True)
        is_refused(running.lab, running.name, "tmpfs cannot work here: it stages", "tmpfs")
        record = running.migrate(EDGES[1], "tmpfs")
        assert record.error.endswith("; use --strategy diskless")
        assert running.user.ask("count")[0] == 1
        record = running.migrate(EDGES[1], "diskless")
        assert record.outcome is Outcome.DONE, record.error
    finally:
        subprocess.run(["mount", "-o", f"remount,size={usage.total}", run], check=True)


def test_a_mount_from_outside_is_refused(running: Running) -> None:
    """Also over one of its own, whose place it takes."""
    pid = running.lab.controller.service(running.name).pid
    for point in ("/srv", "/dev/shm", "/dev/mqueue"):
        in_mounts_of(pid, f"libc.mount(b'none', b'{point}', b'tmpfs', 0, None)")
        try:
            is_refused(running.lab, running.name, f"{point} is mounted in it from outside")
        finally:
            in_mounts_of(pid, f"libc.umount2(b'{point}', 0)")
    assert running.user.ask("count")[0] == 1
    assert running.migrate(EDGES[1]).outcome is Outcome.DONE
