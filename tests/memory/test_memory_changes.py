"""Every way in which a process can change its memory, with real processes: no write is ever missed."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from targets import Shadow, program, wait_for

from marks import thorough
from whimbrel.memory.processes import tree_of
from whimbrel.memory.tracker import TreeTracker

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to trace processes of others"),
]

# What an idle interpreter writes in a round by itself.
NOISE_PAGES = 200

BEGIN = """
a = new(400); fill(a, 400)
"""

CHANGES = {
    "written": ["fill(a, 400, 3)", "fill(a, 400, 7)"],
    "new mapping": ["global b; b = new(300); fill(b, 300)", "fill(b, 300, 5)"],
    "neighbour mapping": [
        "global b; b = new(100, at=a + 400 * P); fill(b, 100)",
        "fill(a, 400, 9); fill(b, 100, 9)",
    ],
    "unmapped": ["check(libc.munmap(a, 200 * P)); fill(a + 200 * P, 200, 4)"],
    "unmapped in the middle": ["check(libc.munmap(a + 100 * P, 50 * P)); fill(a, 100, 4)", "fill(a, 90)"],
    "replaced at the same address": ["new(400, flags=FIXED, at=a); fill(a, 400, 2)", "fill(a, 400, 5)"],
    "partly replaced": ["new(10, flags=FIXED, at=a + 50 * P); fill(a + 50 * P, 10)", "fill(a, 400, 11)"],
    "replaced and not touched": ["new(400, flags=FIXED, at=a)"],
    "moved": [
        "global b; b = libc.mremap(a, 400 * P, 400 * P, 3, new(400)); assert b != a",
        "fill(b, 400, 7)",
    ],
    "moved and written": ["global b; b = libc.mremap(a, 400 * P, 400 * P, 3, new(400)); fill(b, 400, 3)"],
    "moved and back": [
        "global b; b = libc.mremap(a, 400 * P, 400 * P, 3, new(400)); fill(b, 400, 3)",
        "assert libc.mremap(b, 400 * P, 400 * P, 3, a) == a; fill(a, 400, 5)",
    ],
    "moved, then another put in its place": [
        "global b; b = libc.mremap(a, 400 * P, 400 * P, 3, new(400))\nnew(400, flags=FIXED, at=a); fill(a, 400, 3)"
    ],
    "moved, old place kept": [
        "global b; b = libc.mremap(a, 400 * P, 400 * P, 5, 0); fill(b, 400, 2)",
        "fill(a, 400, 3)",
    ],
    "grown": ["global a; a = libc.mremap(a, 400 * P, 900 * P, 1, 0); fill(a, 900, 2)", "fill(a, 900, 7)"],
    "shrunk and grown": [
        "assert libc.mremap(a, 400 * P, 100 * P, 1, 0) == a",
        "global a; a = libc.mremap(a, 100 * P, 400 * P, 1, 0); fill(a, 400, 3)",
    ],
    "dropped": ["check(libc.madvise(a, 200 * P, 4))"],
    "dropped and rewritten": ["check(libc.madvise(a, 200 * P, 4)); fill(a, 200, 2)", "fill(a, 400, 3)"],
    "dropped and read": [
        "check(libc.madvise(a, 200 * P, 4)); [ctypes.string_at(a + n * P, 1) for n in range(200)]",
        "fill(a, 200, 6)",
    ],
    "made read-only and writable": [
        "fill(a, 400, 3); check(libc.mprotect(a, 200 * P, 1))",
        "check(libc.mprotect(a, 200 * P, 3)); fill(a, 400, 5)",
    ],
    "written, then without any permission": ["fill(a, 400, 3); check(libc.mprotect(a, 200 * P, 0))"],
    "written by the kernel": [
        "r, w = os.pipe(); os.write(w, dice.randbytes(40000)); assert libc.read(r, V(a + 77), 40000) == 40000"
    ],
    "written by another process": [
        "b = ctypes.create_string_buffer(dice.randbytes(9000))\n"
        "v = (ctypes.c_uint64 * 4)(ctypes.addressof(b), 9000, a + 99, 9000)\n"
        "assert libc.process_vm_writev(os.getpid(), v, 1, ctypes.byref(v, 16), 1, 0) == 9000"
    ],
    "data segment grown": [
        "global h; h = libc.sbrk(100 * P); fill((h + P - 1) & -P, 99)",
        "fill((h + P - 1) & -P, 99, 3); k = libc.sbrk(50 * P); fill((k + P - 1) & -P, 49)",
        "libc.sbrk(-120 * P); k = libc.sbrk(200 * P); fill((k + P - 1) & -P, 199, 2)",
    ],
    "private mapping of a file": [
        "global f, b; f = os.memfd_create('x'); os.pwrite(f, dice.randbytes(300 * P), 0)\n"
        "b = libc.mmap(0, 300 * P, 3, 2, f, 0); fill(b, 300, 2)",
        "fill(b, 300, 3); check(libc.madvise(b, 100 * P, 4))",
        "[ctypes.string_at(b + n * P, 1) for n in range(300)]; fill(b, 100, 5)",
        "fill(b, 300, 7); check(libc.madvise(b + 50 * P, 100 * P, 4)); fill(b, 200, 3)",
    ],
    "guard region set": [
        "fill(a, 400); libc.madvise(a + 10 * P, 5 * P, 102)",
        "libc.madvise(a + 10 * P, 5 * P, 103); fill(a, 400, 3)",
    ],
    "forked, both write": [
        "global c; c = os.fork()\nif not c:\n  fill(a, 400, 3)\n  while True: time.sleep(9)",
        "fill(a, 400, 5)",
    ],
    "fork of a fork": [
        "if not os.fork():\n  fill(a, 400, 3)\n  if not os.fork(): fill(a, 400, 4)\n  while 1: time.sleep(9)",
        "fill(a, 400, 5)",
    ],
    "threads start": [
        "def f(n):\n  fill(a + n * 40 * P, 40)\n  x = new(20); fill(x, 20)\n  time.sleep(99)\n"
        "for n in range(10): threading.Thread(target=f, args=(n,), daemon=True).start()\ntime.sleep(.1)",
        "fill(a, 400, 5)",
    ],
    "child forked from a thread": [
        "def f():\n  if not os.fork():\n    fill(a, 400, 3)\n    while True: time.sleep(9)\n"
        "t = threading.Thread(target=f); t.start(); t.join()",
        "fill(a, 400, 5)",
    ],
}


def as_steps(changes: list[str]) -> str:
    lines = [BEGIN]
    for number, change in enumerate(changes):
        change = change.replace("; check", "\ncheck").strip()
        first, rest = "", change
        if change.startswith("global"):
            first, _, rest = change.partition(";")
        body = "\n".join("    " + line for line in [first, *rest.strip().split("\n")] if line)
        lines.append(f"def step_{number}():\n{body}")
    return "\n".join(lines) + f"\nsteps({', '.join(f'step_{n}' for n in range(len(changes)))})\n"


@pytest.mark.parametrize("rescan", [True, *thorough(False)], ids=["scanned after each", "only the final scan"])
@pytest.mark.parametrize("name", CHANGES)
def test_change(name: str, rescan: bool) -> None:
    changes = CHANGES[name]
    with program(as_steps(changes)) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        assert shadow.dirty_pages() > 400
        shadow.round()
        assert shadow.dirty_pages() < NOISE_PAGES
        for number in range(len(changes)):
            child.step(number)
            if rescan:
                shadow.round()
        assert shadow.verify(child.pid) > 100
        assert not tracker.problems


@pytest.mark.parametrize("name", ["written", "new mapping", "moved and written", "replaced at the same address"])
def test_a_look_at_how_much_is_written_changes_nothing(name: str) -> None:
    changes = CHANGES[name]
    with program(as_steps(changes)) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        shadow.round()
        shadow.round()
        for number in range(len(changes)):
            child.step(number)
            seen = tracker.written_bytes()
            assert seen >= 50 * 4096
            assert tracker.written_bytes() >= seen, "what was looked at is still to be reported"
        assert shadow.verify(child.pid) > 100


def test_what_was_given_back_is_not_there_any_more() -> None:
    with (
        program(as_steps(["check(libc.madvise(a + 100 * P, 200 * P, 4))"])) as child,
        TreeTracker(child.pid) as tracker,
    ):
        before = tracker.scan()
        after = tracker.there_still(before)
        assert sum(part.size_bytes for part in after) == sum(part.size_bytes for part in before)
        child.step(0)
        lost = sum(part.size_bytes for part in before) - sum(part.size_bytes for part in tracker.there_still(before))
        assert lost // 4096 in range(200, 200 + NOISE_PAGES)
    assert tracker.there_still(before) == []


RESTLESS = """
import mmap, os, random, threading, time
rng, areas, lock = random.Random(1), {}, threading.Lock()
def churn():
    turn = 0
    while True:
        with lock:
            turn += 1
            kind = rng.randrange(4)
            if kind == 0 or len(areas) < 4:
                size = 4096 * rng.randrange(1, 200)
                area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                areas[turn, threading.get_ident()] = area
                area[:] = b"x" * size
            key = rng.choice(list(areas))
            if kind == 1 and len(areas) > 12:
                areas.pop(key).close()
            elif kind == 2:
                try:
                    areas[key].resize(len(areas[key]) + 4096 * rng.randrange(1, 20))
                except OSError:
                    os._exit(3)
for _ in range(2):
    threading.Thread(target=churn, daemon=True).start()
steps(*[lambda: time.sleep(0.1)] * 3)
"""


def test_attaching_cuts_no_mapping_that_changes_meanwhile() -> None:
    """A mapping that is two for the kernel cannot be moved any more: mremap fails, and the program with it."""
    with program(RESTLESS) as child:
        child.step(0)
        for _ in range(12):  # each by itself cut one in one of six cases when mappings were registered one by one
            with TreeTracker(child.pid) as tracker:
                tracker.scan()
                child.step(1)
                tracker.scan()
                child.step(2)


def test_stack_growth() -> None:
    code = """
def deep(n):
    return n and sum(map(deep, (n - 1,))) + 1
sys.setrecursionlimit(100000)
steps(lambda: deep(4000), lambda: deep(100), lambda: deep(9000))
"""

    def stack_bytes(pid: int) -> int:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if line.endswith("[stack]"):
                start, end = line.split()[0].split("-")
                return int(end, 16) - int(start, 16)
        return 0

    with program(code) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        shadow.round()
        before = stack_bytes(child.pid)
        for number in range(3):
            child.step(number)
            shadow.round()
        assert stack_bytes(child.pid) > before + 256 * 1024
        child.step(1)
        shadow.verify(child.pid)


def test_exec_is_noticed() -> None:
    code = """
a = new(100); fill(a, 100)
def again():
    print("done", flush=True)
    os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
steps(again)
""".replace("PROGRAM", "PRELUDE + 'a = new(50); fill(a, 50); steps(lambda: fill(a, 50, 2))'")
    code = f"PRELUDE = {__import__('targets').PRELUDE!r}\n{code}"
    with program(code) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        shadow.round()
        child.step(0)
        child.expect("ready")
        shadow.round()
        assert not tracker.problems
        shadow.round()
        child.step(0)
        assert 25 <= shadow.dirty_pages() < NOISE_PAGES, "the new program is tracked page by page"
        shadow.verify(child.pid)


def test_a_sparse_reservation_costs_what_is_populated() -> None:
    code = """
reserve = new(1 << 24, prot=0)                       # 64 GiB of nothing
lazy = new(1 << 24, flags=NORESERVE)                 # 64 GiB that may be used
def touch():
    for n in range(0, 1 << 24, 1 << 20): fill(lazy + n * P, 1)
steps(touch, touch)
"""
    with program(code) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        assert shadow.dirty_pages() < 5000
        child.step(0)
        assert 16 <= shadow.dirty_pages() < NOISE_PAGES
        child.step(1)
        assert 16 <= shadow.dirty_pages() < NOISE_PAGES
        child.step(1)
        shadow.verify(child.pid)


def test_huge_pages_are_tracked_page_by_page() -> None:
    code = """
size = 16 << 20
a = (new(size // P + 512) + (2 << 20) - 1) & -(2 << 20)
check(libc.madvise(a, size, 14))
fill(a, size // P)
def drop(): check(libc.madvise(a, size // 2, 4)); fill(a, size // P, 512)
steps(lambda: fill(a, size // P, 400), drop)
"""
    with program(code) as child, TreeTracker(child.pid) as tracker:
        huge = "AnonHugePages:         0 kB" not in Path(f"/proc/{child.pid}/smaps_rollup").read_text()
        shadow = Shadow(tracker)
        assert shadow.dirty_pages() >= 4096
        child.step(0)
        assert 11 <= shadow.dirty_pages() < NOISE_PAGES
        child.step(1)
        shadow.round()
        child.step(0)
        assert shadow.verify(child.pid) > 2048
        if not huge:
            pytest.skip("memory was tracked, but this kernel gave no transparent huge pages")


def test_shared_memory_is_left_to_criu_and_private_memory_of_any_kind_is_ours() -> None:
    code = """
shared = new(300, flags=0x21)
locked = new(200); fill(locked, 200); check(libc.mlock(locked, 200 * P))
file = os.memfd_create("x"); os.ftruncate(file, 300 * P)
private_file = libc.mmap(0, 300 * P, 3, 2, file, 0)
fill(shared, 300); fill(private_file, 300, 2)
def write(): fill(shared, 300)
def also(): fill(locked, 200); fill(private_file, 300, 2)
steps(write, also, lambda: check(libc.munlock(locked, 200 * P)))
"""
    with program(code) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        assert shadow.dirty_pages() > 350
        shadow.round()
        child.step(0)
        assert shadow.dirty_pages() < NOISE_PAGES, "300 shared pages were written"
        child.step(1)
        assert 350 <= shadow.dirty_pages() < 350 + NOISE_PAGES
        child.step(2)
        child.step(1)
        assert 350 <= shadow.dirty_pages() < 350 + NOISE_PAGES
        assert shadow.verify(child.pid) > 350


def test_short_lived_children_do_not_disturb() -> None:
    code = """
def storm():
    for n in range(150):
        if not os.fork():
            fill(new(30), 30); os._exit(0)
        if n % 4 == 0: subprocess.run(["/bin/true"])
        if n % 10 == 9:
            for _ in range(10): os.wait()
a = new(400); fill(a, 400)
steps(storm)
"""
    with program(code) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        child.tell(0)
        for _ in range(60):
            shadow.round()
        child.expect("done")
        shadow.verify(child.pid)


def test_memory_that_comes_back_to_where_it_was_loses_no_write() -> None:
    """The kernel joins it to the mapping that it was cut from and ends the registration of both: what is written in the
    other one before that is noticed keeps its mark."""
    code = """
b = new(64); fill(b, 64)
half, away = b + 32 * P, new(32)
def back():
    libc.mremap(away, 32 * P, 32 * P, 3, half)
    fill(b, 32)
steps(lambda: libc.mremap(half, 32 * P, 32 * P, 3, away), back, lambda: fill(b, 32))
"""
    with program(code) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        shadow.round()
        for step in (0, 1, 2, 2):
            child.step(step)
            shadow.round()
        child.step(2)
        shadow.verify(child.pid)


CHAOS = """
file = os.memfd_create("x"); os.pwrite(file, os.urandom(60 * P), 0)
def chaos(seed):
    dice = random.Random(seed)
    mine = {}
    while True:
        what = dice.randrange(12)
        if what < 2 and len(mine) < 24:
            pages = dice.randrange(1, 60)
            mine[new(pages) if what else libc.mmap(0, pages * P, 3, 2, file, 0)] = pages
        elif mine:
            address = dice.choice(list(mine)); pages = mine[address]
            if what < 7: fill(address, pages, dice.randrange(1, 9))
            elif what == 7: libc.munmap(address, pages * P); del mine[address]
            elif what == 8:
                more = dice.randrange(1, 60); at = libc.mremap(address, pages * P, more * P, 1, 0)
                if at != 2**64 - 1: del mine[address]; mine[at] = more
            elif what == 9: libc.madvise(address, dice.randrange(1, pages + 1) * P, 4)
            elif what == 10:
                libc.mprotect(address, pages * P, 1); time.sleep(0.0002); libc.mprotect(address, pages * P, 3)
            else:
                new(dice.randrange(1, pages + 1), flags=FIXED, at=address)
        time.sleep(0.001)  # some thousand changes a second, all threads together: the scan needs a processor

def go(depth, seed):
    for n in range(THREADS): threading.Thread(target=chaos, args=(seed * 100 + n,), daemon=True).start()
    if depth:
        for n in range(2):
            if not os.fork(): go(depth - 1, seed * 10 + n)
    if depth == 0:
        while True:
            if not os.fork(): fill(new(9), 9); time.sleep(0.005); os._exit(0)
            os.wait(); time.sleep(0.05)
    print("ready", flush=True)
    while True: time.sleep(99)
go(DEPTH, 1)
"""


@pytest.mark.parametrize(("depth", "threads"), [(0, 8), (1, 3), *thorough((0, 12), (2, 2))])
def test_chaos(depth: int, threads: int) -> None:
    """Processes and threads that map, move, drop, replace and write at random, scanned all the while."""
    code = CHAOS.replace("DEPTH", str(depth)).replace("THREADS", str(threads))
    if depth == 0:
        code = code.replace("    if depth == 0:", '    print("ready", flush=True)\n    if depth == 0:')
    with program(code) as child:
        wait_for(lambda: len(tree_of(child.pid)) >= 2**depth, "all processes")
        for _ in range(2):
            with TreeTracker(child.pid) as tracker:
                shadow = Shadow(tracker)
                for _ in range(8):
                    shadow.round()
                assert shadow.verify(child.pid) > 500
            for pid in tree_of(child.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def test_a_lost_result_is_reported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "a = new(100); fill(a, 100)\nsteps(lambda: fill(a, 100))"
    with program(code) as child, TreeTracker(child.pid) as tracker:
        shadow = Shadow(tracker)
        shadow.round()
        child.step(0)
        with monkeypatch.context() as patch:
            patch.setattr("whimbrel.memory.uffd.Scanner.unregistered", lambda *_: (_ for _ in ()).throw(MemoryError))
            with pytest.raises(MemoryError):
                tracker.scan()
        shadow.verify(child.pid)
