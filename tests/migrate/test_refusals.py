"""What cannot cross is refused before the freeze, in one line, and goes on untouched."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.migrate.conftest import EDGES, Lab, Running
from whimbrel.model.migration import Outcome

HOLD = """
import ctypes, time
fd = ctypes.CDLL(None).syscall(323, 1)
print('holds', fd, flush=True)
time.sleep(3600)
"""


def in_mounts_of(pid: int, call: str) -> None:
    """A call of the C library's in a process's mount namespace, where there is no program to run."""
    code = f"import ctypes, os; libc = ctypes.CDLL(None); fd = os.open('/proc/{pid}/ns/mnt', 0); "
    code += f"assert libc.setns(fd, 0) == 0; assert {call} == 0"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def holder(lab: Lab) -> Iterator[str]:
    lab.controller.run_service("holder", lab.image, EDGES[0], args=["/usr/bin/python3", "-c", HOLD])
    deadline = time.monotonic() + 10
    while "holds" not in lab.controller.logs("holder"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield "holder"
    lab.controller.remove_service("holder")


def test_a_held_userfaultfd_is_refused(lab: Lab, holder: str) -> None:
    pid = lab.controller.service(holder).pid
    record = lab.controller.migrate(holder, EDGES[1])
    assert record.outcome is not Outcome.DONE
    assert "userfaultfd" in record.error
    assert "\n" not in record.error
    assert lab.controller.service(holder).pid == pid
    assert lab.leftovers(EDGES[1], holder) == []


def test_a_mount_from_outside_is_refused(running: Running) -> None:
    pid = running.lab.controller.service(running.name).pid
    in_mounts_of(pid, "libc.mount(b'none', b'/srv', b'tmpfs', 0, None)")
    try:
        record = running.migrate(EDGES[1])
    finally:
        in_mounts_of(pid, "libc.umount2(b'/srv', 0)")
    assert record.outcome is not Outcome.DONE
    assert "/srv is mounted in it from outside" in record.error
    assert running.user.ask("count")[0] == 1
    assert running.migrate(EDGES[1]).outcome is Outcome.DONE
