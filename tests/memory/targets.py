"""Programs to be tracked, and the check: a copy made of scans alone must equal the real memory."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.processes import tree_of
from whimbrel.memory.ranges import Ranges, total_bytes
from whimbrel.memory.tracker import ProcessPages, TreeTracker
from whimbrel.memory.vmas import read_vmas, trackable

PAGE = 4096
_FRAME = (1 << 55) - 1

PRELUDE = """
import ctypes, os, random, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
for name in ("mmap", "mremap", "sbrk"):
    getattr(libc, name).restype = ctypes.c_void_p
V, N, I = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
libc.mmap.argtypes = (V, N, I, I, I, ctypes.c_long)
libc.mremap.argtypes = (V, N, N, I, V)
libc.munmap.argtypes, libc.mprotect.argtypes, libc.madvise.argtypes = (V, N), (V, N, I), (V, N, I)
libc.mlock.argtypes = libc.munlock.argtypes = (V, N)
libc.sbrk.argtypes = (ctypes.c_long,)
P = 4096
RW, PRIVATE, NORESERVE, FIXED = 3, 0x22, 0x4022, 0x32
dice = random.Random(int.from_bytes(os.urandom(8), "little"))

def new(pages, prot=RW, flags=PRIVATE, at=0):
    address = libc.mmap(at, pages * P, prot, flags, -1, 0)
    assert address != 2**64 - 1, ctypes.get_errno()
    return address

def fill(address, pages, every=1):
    for page in range(0, pages, every):
        ctypes.memmove(address + page * P + dice.randrange(P - 16), dice.randbytes(16), 16)

def check(result):
    assert result == 0, os.strerror(ctypes.get_errno())

def steps(*functions):
    print("ready", flush=True)
    for line in sys.stdin:
        functions[int(line)]()
        print("done", flush=True)
    os._exit(0)
"""


class Program:
    """A child that runs Python code, one numbered step at a time."""

    def __init__(self, code: str, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PRELUDE + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.expect("ready")

    def expect(self, word: str) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line == word, f"child said {line!r}, not {word!r}"

    def step(self, number: int) -> None:
        self.tell(number)
        self.expect("done")

    def tell(self, number: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()


@contextlib.contextmanager
def program(code: str, *prefix: str) -> Iterator[Program]:
    child = Program(code, *prefix)
    try:
        yield child
    finally:
        for pid in reversed(list(tree_of(child.pid))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.process.wait(10)
        for stream in (child.process.stdin, child.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def states(pid: int) -> list[str]:
    found = []
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            found.append(status.read_text().rpartition(")")[2].split()[0])
    return found


def wait_for(condition: object, what: str, timeout_s: float = 10.0) -> None:
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.002)


def stop(root: int) -> list[int]:
    """Stop a whole tree; returns its pids, none of which changes any more."""
    before: list[int] = []
    while True:
        now = [pid for pid in tree_of(root) if states(pid) and "Z" not in states(pid)]
        if now == before:
            return now
        for pid in now:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in now:
            wait_for(lambda pid=pid: set(states(pid)) <= {"T", "t", "Z", "X"}, f"process {pid} stopped")
        before = now


def differing(copy: bytes, real: bytes) -> str:
    at = [place for place in range(PAGE) if copy[place] != real[place]]
    return f"{len(at)} bytes from {at[0]} to {at[-1]}, {copy[at[0]]} for {real[at[0]]}, all zero: {not any(real)}"


def marks(pagemap: int, page: int) -> str:
    """What the kernel says of a page: without its mark it was written, and a scan should have found it."""
    (entry,) = struct.unpack("<Q", os.pread(pagemap, 8, page // PAGE * 8))
    return f"write-protect mark {entry >> 57 & 1}, own {entry >> 56 & 1}, of a file {entry >> 61 & 1}"


class Shadow:
    """What a destination would hold: for each process the newest copy of each page that a scan reported."""

    def __init__(self, tracker: TreeTracker) -> None:
        self.tracker = tracker
        self.pages: dict[int, dict[int, bytes]] = {}

    def round(self, *, final: bool = False) -> list[ProcessPages]:
        found = self.tracker.scan(final=final)
        for process in found:
            buffer = bytearray(total_bytes(process.ranges))
            gone = {
                address
                for start, end in read_pages_into(process.pid, process.ranges, buffer).tolist()
                for address in range(start, end, PAGE)
            }
            mine = self.pages.setdefault(process.pid, {})
            at = 0
            for start, end in process.ranges.tolist():
                for address in range(start, end, PAGE):
                    if address not in gone:
                        mine[address] = bytes(buffer[at : at + PAGE])
                    at += PAGE
        return found

    def dirty_pages(self) -> int:
        return sum(process.size_bytes for process in self.round()) // PAGE

    def verify(self, root: int) -> int:
        """Stop the tree, take the last round as a migration does, compare with the memory as it is. Returns
        the number of pages compared."""
        pids = stop(root)
        final = {process.pid for process in self.round(final=True)}
        assert final >= set(pids)
        compared = 0
        for pid in pids:
            compared += self._compare(pid)
        return compared

    def _compare(self, pid: int) -> int:
        """Against /proc/PID/pagemap and /proc/PID/mem: other interfaces than those under test."""
        mine = self.pages.get(pid, {})
        compared = 0
        with open(f"/proc/{pid}/pagemap", "rb") as pagemap, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for vma in read_vmas(pid, flags=True):
                if not trackable(vma):
                    continue
                for page in populated(pagemap.fileno(), vma.start, vma.end):
                    try:
                        real = os.pread(memory.fileno(), PAGE, page)
                    except OSError:
                        continue  # a guard region
                    copy = mine.get(page, bytes(PAGE))
                    assert copy == real, (
                        f"{pid} {page:#x} differs in {vma} ({'un' * (page not in mine)}known page): "
                        f"{differing(copy, real)}; {marks(pagemap.fileno(), page)}"
                    )
                    compared += 1
        return compared


def pages(some: Ranges) -> set[int]:
    """Addresses of all pages in the ranges."""
    return {page for start, end in some.tolist() for page in range(start, end, PAGE)}


@functools.cache
def zero_frame() -> np.uint64:
    """The frame of the page of zeros that stands for memory that was only read."""
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        assert memory[0] == 0
        view = np.frombuffer(memory, dtype=np.uint8)
        address = view.ctypes.data
        with open("/proc/self/pagemap", "rb") as pagemap:
            entry = struct.unpack("<Q", os.pread(pagemap.fileno(), 8, address // PAGE * 8))[0]
        del view
    return np.uint64(entry & _FRAME)


def populated(pagemap: int, start: int, end: int) -> list[int]:
    """Addresses of present or swapped pages that neither a file holds nor the page of zeros is, by the plain
    pagemap."""
    found = []
    chunk = 1 << 30
    for low in range(start, end, chunk):
        high = min(low + chunk, end)
        if end - start > 8 * chunk and not _any_page(pagemap, low, high):
            continue
        raw = os.pread(pagemap, (high - low) // PAGE * 8, low // PAGE * 8)
        entries = np.frombuffer(raw, dtype=np.uint64)
        held_by_file = entries & np.uint64(1 << 61) != 0
        zero = entries & np.uint64(_FRAME) == zero_frame()
        there = np.flatnonzero((entries & np.uint64(3 << 62) != 0) & ~held_by_file & ~zero)
        found += (low + there * PAGE).tolist()
    return found


def _any_page(pagemap: int, low: int, high: int) -> bool:
    import fcntl

    argument = bytearray(struct.pack("<12Q", 96, 0, low, high, 0, 0, 0, 1, 0, 0, 0b11000, 0))
    return fcntl.ioctl(pagemap, 0xC0606610, argument) != 0 or struct.unpack("<12Q", argument)[4] < high
