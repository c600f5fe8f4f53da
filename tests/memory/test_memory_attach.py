"""Attaching must not be felt: calls, signals, stopped and filtered processes, a tracker that dies."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from targets import Shadow, program, states, stop, wait_for

from marks import MANY
from whimbrel.memory.guardian import AttachError, Guardian
from whimbrel.memory.processes import tree_of
from whimbrel.memory.tracker import TreeTracker
from whimbrel.model.errors import BadInput

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to trace processes of others"),
]

BLOCKED = {
    "nanosleep": """
class Span(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
def wait():
    left = Span()
    assert libc.nanosleep(ctypes.byref(Span(0, 700_000_000)), ctypes.byref(left)) == 0, ctypes.get_errno()
""",
    "recv": """
one, two = socket.socketpair()
def wait():
    buffer = ctypes.create_string_buffer(16)
    threading.Timer(0.7, lambda: two.send(b"hello")).start()
    assert libc.recv(one.fileno(), buffer, 16, 0) == 5 and buffer.value == b"hello", ctypes.get_errno()
""",
    "poll": """
import struct
r, w = os.pipe()
def wait():
    entry = ctypes.create_string_buffer(struct.pack("iHH", r, 1, 0))
    assert libc.poll(entry, 1, 700) == 0, ctypes.get_errno()
""",
    "read from a pipe": """
r, w = os.pipe()
def wait():
    buffer = ctypes.create_string_buffer(16)
    threading.Timer(0.7, lambda: os.write(w, b"hello")).start()
    assert libc.read(r, buffer, 16) == 5, ctypes.get_errno()
""",
    "wait for a child": """
def wait():
    child = os.posix_spawn("/bin/sleep", ["sleep", "0.7"], {})
    status = ctypes.c_int()
    assert libc.waitpid(child, ctypes.byref(status), 0) == child and status.value == 0, ctypes.get_errno()
""",
    "sigsuspend": """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
def wait():
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    empty = ctypes.create_string_buffer(128)
    assert libc.sigsuspend(empty) == -1 and ctypes.get_errno() == 4
    assert signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
""",
    # epoll_wait returns EINTR from any stop (signal(7)), so a thread in it is spared while there is another.
    "epoll_wait beside another thread": """
import select
epoll = select.epoll()
threading.Thread(target=lambda: [libc.usleep(1_000_000) for _ in range(9)], daemon=True).start()
def wait():
    assert libc.epoll_wait(epoll.fileno(), ctypes.create_string_buffer(16), 1, 700) == 0, ctypes.get_errno()
""",
}


@pytest.fixture(scope="module")
def guardian() -> object:
    guardian = Guardian()
    yield guardian
    guardian.close()


def attach(guardian: Guardian, pid: int) -> float:
    uffd, stop_ms = guardian.userfaultfd_of(pid)
    assert os.readlink(f"/proc/self/fd/{uffd}") == "anon_inode:[userfaultfd]"
    assert not os.get_inheritable(uffd)
    os.close(uffd)
    return stop_ms


def open_userfaultfds(pid: int) -> int:
    return sum("userfaultfd" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.parametrize("name", BLOCKED)
def test_an_interrupted_call_goes_on(guardian: Guardian, name: str) -> None:
    code = (
        BLOCKED[name]
        + """
def timed():
    began = time.monotonic(); wait(); took = time.monotonic() - began
    assert 0.69 < took < 5, took
steps(timed)
"""
    )
    with program(code) as child:
        child.tell(0)
        time.sleep(0.2)
        for _ in range(20):
            attach(guardian, child.pid)
            time.sleep(0.01)
        child.expect("done")
        assert open_userfaultfds(child.pid) == 0


def test_signals_arrive_while_attaching(guardian: Guardian) -> None:
    """A handler every 0.3 ms, arithmetic in between, a floating-point and a call result each checked."""
    code = """
count = 0
def handler(*_):
    global count; count += 1
signal.signal(signal.SIGALRM, handler)
def work():
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        x = 1.0
        for n in range(1, 200): x = x * n / n + 0.5 - 0.5
        assert x == 1.0 and os.getppid() > 1 and len(os.urandom(32)) == 32
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert count > 300, count
steps(work)
"""
    with program(code) as child:
        child.tell(0)
        stops = [attach(guardian, child.pid) for _ in range(300)]
        child.expect("done")
        assert open_userfaultfds(child.pid) == 0
    print(f"busy target: a thread stood still {statistics.median(stops):.3f} ms, worst {max(stops):.3f} ms")


def test_many_threads_busy(guardian: Guardian) -> None:
    code = """
def work(n):
    while True: assert sum(range(300)) == 44850
for n in range(8): threading.Thread(target=work, args=(n,), daemon=True).start()
steps(lambda: None)
"""
    with program(code) as child:
        stops = [attach(guardian, child.pid) for _ in range(100)]
        child.step(0)
    print(f"8 busy threads: one stood still {statistics.median(stops):.3f} ms, worst {max(stops):.3f} ms")


def test_a_stopped_process_stays_stopped(guardian: Guardian) -> None:
    with program("a = new(100); fill(a, 100)\nsteps(lambda: fill(a, 100))") as child:
        stop(child.pid)
        with TreeTracker(child.pid) as tracker:
            shadow = Shadow(tracker)
            assert shadow.dirty_pages() > 100
            assert not tracker.problems
            wait_for(lambda: states(child.pid) == ["T"], "stopped again, after what was done in it")
            time.sleep(0.05)
            assert states(child.pid) == ["T"]
            os.kill(child.pid, signal.SIGCONT)
            child.step(0)
            shadow.verify(child.pid)


def test_a_zombie_has_no_pages(guardian: Guardian) -> None:
    code = """
a = new(10)
if not os.fork(): os._exit(0)
steps(lambda: fill(a, 10))
"""
    with program(code) as child, TreeTracker(child.pid) as tracker:
        wait_for(lambda: any(states(pid) == ["Z"] for pid in tree_of(child.pid)), "a zombie")
        found = {process.pid: process.size_bytes for process in tracker.scan()}
        zombie = next(pid for pid in found if pid != child.pid)
        assert found[zombie] == 0
        assert found[child.pid] > 0
        with pytest.raises(AttachError, match="zombie"):
            guardian.userfaultfd_of(zombie)


def test_system_call_filter() -> None:
    """A filter that kills for userfaultfd() and for close() of what it gave."""
    code = """
import struct
libc.prctl.argtypes = (I, ctypes.c_ulong, V, V, V)
check(libc.prctl(38, 1, 0, 0, 0))
def rule(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
number = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
rules = rule(0x20, 0, 0, 0) + rule(0x15, 0, 1, number) + rule(6, 0, 0, 0x80000000) + rule(6, 0, 0, 0x7FFF0000)
kept = ctypes.create_string_buffer(rules)
filter = struct.pack("HxxxxxxQ", 4, ctypes.addressof(kept))
check(libc.prctl(22, 2, ctypes.create_string_buffer(filter), 0, 0))
a = new(100)
steps(lambda: fill(a, 100, 2))
"""
    with program(code) as child, TreeTracker(child.pid) as tracker:
        assert "Seccomp:\t2" in Path(f"/proc/{child.pid}/status").read_text()
        shadow = Shadow(tracker)
        shadow.round()
        assert not tracker.problems
        child.step(0)
        assert 50 <= shadow.dirty_pages() < 300
        shadow.verify(child.pid)


def test_a_process_without_descriptors_left_is_still_copied() -> None:
    code = """
a = new(100); fill(a, 100)
def starve():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
steps(starve, lambda: fill(a, 100, 2))
"""
    with program(code) as child, TreeTracker(child.pid) as tracker:
        child.step(0)
        shadow = Shadow(tracker)
        assert shadow.dirty_pages() > 100
        assert "Too many open files" in tracker.problems[child.pid]
        child.step(1)
        shadow.verify(child.pid)


def test_a_process_that_somebody_else_traces_is_returned_whole() -> None:
    tracer_code = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0
print("traced", flush=True); sys.stdin.read()
"""
    with program("a = new(100); fill(a, 100)\nsteps(lambda: fill(a, 100))") as child:
        tracer = subprocess.Popen(
            [sys.executable, "-c", tracer_code, str(child.pid)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert tracer.stdout is not None
        assert tracer.stdin is not None
        assert tracer.stdout.readline() == "traced\n"
        with TreeTracker(child.pid) as tracker:
            shadow = Shadow(tracker)
            assert shadow.dirty_pages() > 100
            assert shadow.dirty_pages() > 100
            assert f"process {tracer.pid} traces it" in tracker.problems[child.pid]
            assert sum(process.size_bytes for process in tracker.scan(final=True)) > 100 * 4096
            tracer.stdin.close()
            tracer.wait(10)
            assert shadow.dirty_pages() > 100
            assert not tracker.problems
            assert shadow.dirty_pages() < 300
            child.step(0)
            shadow.verify(child.pid)
        tracer.stdout.close()


def test_pids_are_those_of_the_container() -> None:
    code = "a = new(100); fill(a, 100)\nif os.fork(): steps(lambda: fill(a, 100))\nelse: time.sleep(99)"
    with program(code, "unshare", "--pid", "--fork", "--kill-child") as outer:
        (init,) = (pid for pid, parent in tree_of(outer.pid).items() if parent == outer.pid)
        with TreeTracker(init) as tracker:
            shadow = Shadow(tracker)
            found = shadow.round()
            assert [process.ns_pid for process in found] == [1, 2]
            assert found[0].pid == init
            outer.step(0)
            shadow.verify(init)
        with TreeTracker(outer.pid) as tracker:
            assert [process.ns_pid for process in tracker.scan(final=True)] == [*tree_of(outer.pid)]


def test_a_look_that_attaches_nothing_returns_what_is_not_tracked_whole() -> None:
    steps = (
        "def step():\n global b\n fill(a, 50)\n b = new(300); fill(b, 300)\na = new(1000); fill(a, 1000); steps(step)"
    )
    with program(steps) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        assert shadow.dirty_pages() > 1000
        child.step(0)
        for _ in range(2):
            (found,) = tracker.scan(attach=False)
            assert 300 <= found.size_bytes // 4096 < 900, "the new mapping each time, of the known one what was written"
        assert shadow.dirty_pages() >= 300
        assert shadow.dirty_pages() < 300, "now it is tracked"


def test_an_unknown_process_is_named() -> None:
    with pytest.raises(BadInput, match="process 4194304 does not exist"):
        TreeTracker(4194304)


def test_the_memory_is_as_before_when_tracking_ends() -> None:
    with program("a = new(1000); fill(a, 1000)\nsteps(lambda: fill(a, 1000))") as child:
        maps = Path(f"/proc/{child.pid}/maps")
        before = maps.read_text()
        with TreeTracker(child.pid) as tracker:
            for _ in range(3):
                tracker.scan()
            assert " uw" in Path(f"/proc/{child.pid}/smaps").read_text()
            children = set(tree_of(os.getpid()))
        assert maps.read_text() == before
        assert " uw" not in Path(f"/proc/{child.pid}/smaps").read_text()
        assert len(children - set(tree_of(os.getpid()))) == 1, "the guardian has gone"
        child.step(0)


def test_a_killed_tracker_leaves_the_target_alone() -> None:
    """SIGKILL at random moments of a loop that attaches and scans; the target checks itself meanwhile."""
    target = """
import hashlib
pages = 300
a = new(pages)
rounds = 0
def work():
    global rounds
    while True:
        rounds += 1
        for page in range(pages):
            ctypes.memmove(a + page * P, hashlib.sha256(b"%d %d" % (page, rounds)).digest(), 32)
        for page in range(pages):
            assert ctypes.string_at(a + page * P, 32) == hashlib.sha256(b"%d %d" % (page, rounds)).digest()
def sleeper():
    while True: assert libc.usleep(500) == 0
for f in (work, sleeper): threading.Thread(target=lambda f=f: (f(), os._exit(1)), daemon=True).start()
threading.excepthook = lambda *_: os._exit(1)
def alive():
    before = rounds; time.sleep(0.1); assert rounds > before
steps(alive)
"""
    # Forked from one that has everything imported: each line on its standard input starts a tracker.
    trackers = """
import os, sys
from whimbrel.memory.tracker import TreeTracker
mother = os.getpid()
for line in sys.stdin:
    if pid := os.fork():
        os.waitpid(pid, 0)
        print("ended", flush=True)
        continue
    print(os.getpid(), flush=True)
    while os.getppid() == mother:
        with TreeTracker(int(sys.argv[1])) as tracker:
            for _ in range(3):
                for process in tracker._processes.values(): process._detach()
                tracker.scan()
"""
    dice = random.Random(7)
    with (
        program(target) as child,
        subprocess.Popen(
            [sys.executable, "-c", trackers, str(child.pid)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # or numpy starts threads, and a fork has none of them
        ) as parent,
    ):  # fmt: skip
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(100 if MANY else 25):
            parent.stdin.write("another\n")
            pid = int(parent.stdout.readline())
            time.sleep(dice.uniform(0, 0.12))
            os.kill(pid, signal.SIGKILL)
            assert parent.stdout.readline() == "ended\n"
            assert child.process.poll() is None
            wait_for(lambda: open_userfaultfds(child.pid) == 0, "no descriptor left in the target")
        parent.kill()
        for _ in range(3):
            child.step(0)
        wait_for(lambda: "TracerPid:\t0" in Path(f"/proc/{child.pid}/status").read_text(), "nobody traces it")
        with TreeTracker(child.pid) as tracker:
            shadow = Shadow(tracker)
            shadow.round()
            assert not tracker.problems
            shadow.verify(child.pid)


def attach_until_it_fails(guardian: Guardian, pid: int) -> None:
    while True:
        attach(guardian, pid)


def test_guardian_outlives_a_target_that_dies(guardian: Guardian) -> None:
    for _ in range(30):
        with program("steps()") as child:
            os.kill(child.pid, signal.SIGKILL)
            for _ in range(3):
                with pytest.raises(AttachError):
                    attach_until_it_fails(guardian, child.pid)
