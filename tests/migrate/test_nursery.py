"""Helper processes forked from the nursery: each stands alone, whatever becomes of the nursery and of its siblings."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.migrate.disturb import until
from whimbrel.migrate.nursery import Child, Nursery
from whimbrel.model.errors import StepFailed

END_S = 10.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    one = Nursery()
    yield one
    one.close()


@contextlib.contextmanager
def waiting(nursery: Nursery) -> Iterator[tuple[Child, socket.socket]]:
    """A receiving process without its order, and our end of the socket on which that would come."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = nursery.fork("receive", more=theirs.fileno())
        theirs.close()
        until(lambda: "receive" in name_of(child.pid), "it does not begin")
        try:
            yield child, ours
        finally:
            child.kill()
            child.close()


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def open_files(pid: int) -> set[str]:
    return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}


def test_children_share_no_descriptor_and_stand_in_sessions_of_their_own(nursery: Nursery) -> None:
    """A pipe or socket that another child held open would never end for whoever waits for its end."""
    with waiting(nursery) as (one, _), waiting(nursery) as (two, _):
        shared = open_files(one.pid) & open_files(two.pid)
        assert not [name for name in shared if name.startswith(("pipe:", "socket:"))] or shared == own_errors(), shared
        assert os.getsid(one.pid) == one.pid
        assert os.getsid(two.pid) == two.pid
        held = open_files(parent_of(one.pid))
        assert not held & (open_files(one.pid) - own_errors()), "the nursery kept what is its child's"


def own_errors() -> set[str]:
    """Where standard error goes, which is everybody's here."""
    return {os.readlink("/proc/self/fd/2"), "/dev/null"}


def test_the_nursery_has_one_thread(nursery: Nursery) -> None:
    """Else a child could be born with a lock that a thread held which it does not have."""
    with waiting(nursery) as (child, _):
        assert len(list(Path(f"/proc/{parent_of(child.pid)}/task").iterdir())) == 1


def test_an_agent_forks_it_from_itself_and_nobody_is_taken_for_the_agent() -> None:
    """In a process of its own, because this one has threads; who kills `whimbrel agent` by its name must not meet who
    holds the memory of a running service."""
    program = r"""
import os, socket, sys, time
from whimbrel.migrate.nursery import Nursery
held = open("/proc/self/status")
nursery = Nursery()
if (code := nursery.start()) is not None:
    sys.exit(code)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
child = nursery.fork("receive", more=theirs.fileno())
theirs.close()
def words(pid): return open(f"/proc/{pid}/cmdline").read().split("\0")[:2]
def parent(pid): return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
while words(child.pid) != ["whimbrel", "receive"]:
    time.sleep(0.01)
mother = parent(child.pid)
def fds(): return len(os.listdir(f"/proc/{mother}/fd"))
until = time.monotonic() + 20
while fds() > 4 and time.monotonic() < until:  # what the fork itself took is given back
    time.sleep(0.01)
print(parent(mother) == os.getpid(), *words(mother), fds())
ours.close()
print(child.ended(10))
nursery.close()
print(os.path.exists(f"/proc/{mother}"))
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["True whimbrel nursery 4", "True", "False"], done.stderr


def test_a_child_ends_when_nobody_has_an_order_for_it(nursery: Nursery) -> None:
    with waiting(nursery) as (child, ours):
        assert not child.ended()
        ours.close()
        assert child.ended(END_S)


def test_children_outlive_the_nursery_and_a_new_one_is_started(nursery: Nursery) -> None:
    with waiting(nursery) as (child, ours):
        parent = parent_of(child.pid)
        os.kill(parent, signal.SIGKILL)
        until(lambda: parent_of(child.pid) != parent, "the nursery does not end")
        assert not child.ended()
        with waiting(nursery) as (other, _):
            assert parent_of(other.pid) not in (parent, os.getpid())
        ours.close()
        assert child.ended(END_S), "its end is known although its parent is another now"


def test_the_nursery_ends_with_its_agent_and_children_live_on(nursery: Nursery) -> None:
    with waiting(nursery) as (child, _):
        nursery.close()
        until(lambda: parent_of(child.pid) == 1 or name_of(parent_of(child.pid)) != "python", "it has no new parent")
        assert not child.ended()


def test_killing_a_child_ends_it_and_leaves_no_zombie(nursery: Nursery) -> None:
    with waiting(nursery) as (child, _):
        child.kill()
        assert child.ended(END_S)
        until(lambda: not Path(f"/proc/{child.pid}").exists(), "it is never reaped")
        child.kill()  # its number may be somebody else's by now


def test_what_a_child_reads_and_writes_is_ours(nursery: Nursery) -> None:
    """The process that sends files reads its order, cannot connect, says so, and ends."""
    child = nursery.fork("sendfiles")
    with os.fdopen(child.stdin, "wb") as orders, os.fdopen(child.stdout, "rb") as events:
        child.stdin = child.stdout = -1
        orders.write(b'{"host": "127.0.0.1", "port": 1, "token": "abcdefgh", "folders": []}\n')
        orders.flush()
        assert b'"event":"failed"' in events.readline()
        assert child.ended(END_S)
    child.close()


def test_an_unknown_program_is_refused_and_the_nursery_goes_on(nursery: Nursery) -> None:
    with pytest.raises(StepFailed, match="no knitting process could be started"):
        nursery.fork("knitting")
    with waiting(nursery) as (child, _):
        assert not child.ended()
