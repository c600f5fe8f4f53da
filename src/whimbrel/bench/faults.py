"""`whimbrel bench faults`: what a touch of memory costs that is not in place yet, ours against the kernel's own.

The same program touches the same pages in the same order each time. *kernel*: ordinary fresh memory. *served*: memory
that the fault server holds, as after a restore, and nothing else. *filled*: the same while the rest of it is filled.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import random
import socket
import struct
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from whimbrel.bench import table
from whimbrel.bench.report import machine, spread
from whimbrel.client.outage import median
from whimbrel.memory.lazy import LazyServer
from whimbrel.memory.lazyspace import LazySpace
from whimbrel.memory.reserve import address_of
from whimbrel.memory.store import PageStore
from whimbrel.memory.supply import Supply
from whimbrel.migrate.receive import SWITCH_S
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES, format_bytes

KERNEL, SERVED, FILLED = "kernel", "served", "filled"
WAYS = (KERNEL, SERVED, FILLED)
THINK_S = 20e-6  # between two touches, as a program does something with what it reads
TIMEOUT_S = 60.0
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFDIO_API, _UFFDIO_REGISTER, _MODE_MISSING = 0xC018AA3F, 0xC020AA00, 1
_EVENTS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6  # fork, remap, remove, unmap: as CRIU asks for them


# --- the program that touches --------------------------------------------------------------------------------
def program(number: int, way: str, pages: int, touches: int) -> None:
    """Run as a process of its own: hands its userfaultfd over, waits for a word, touches, tells how long each took."""
    memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memoryview(memory))
    with socket.socket(fileno=number) as talk:
        if way != KERNEL:
            uffd = _userfaultfd(address, pages)
            socket.send_fds(talk, [struct.pack("<Q", address)], [uffd])
            os.close(uffd)
        talk.recv(1)
        order = list(range(0, pages, pages // touches))[:touches]
        random.Random(touches).shuffle(order)
        took_ns = np.zeros(touches, np.uint64)
        wrong, clock = 0, time.perf_counter_ns
        for turn, page in enumerate(order):
            began_ns = clock()
            byte = memory[page * PAGE_BYTES]
            ended_ns = clock()
            took_ns[turn] = ended_ns - began_ns
            wrong += way != KERNEL and byte != page % 251 + 1
            while clock() - ended_ns < THINK_S * 1e9:
                pass
        talk.sendall(struct.pack("<Q", wrong) + took_ns.tobytes())
        talk.recv(1)


def _userfaultfd(address: int, pages: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    uffd = int(libc.syscall(_USERFAULTFD[platform.machine()], os.O_CLOEXEC | os.O_NONBLOCK))
    if uffd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    fcntl.ioctl(uffd, _UFFDIO_API, struct.pack("<QQQ", 0xAA, _EVENTS, 0))
    fcntl.ioctl(uffd, _UFFDIO_REGISTER, struct.pack("<QQQQ", address, pages * PAGE_BYTES, _MODE_MISSING, 0))
    return uffd


# --- the measurement -----------------------------------------------------------------------------------------
def touched(way: str, *, pages: int, touches: int) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
    """How long each touch took, in us, and what the server says of it. Raises StepFailed when a page was wrong."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    with ours, contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "whimbrel.bench.faults", str(theirs.fileno()), way, str(pages), str(touches)]
        child = stack.enter_context(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
        stack.callback(child.kill)
        theirs.close()
        server, store = _server(ours, pages) if way != KERNEL else (None, None)
        if server is not None and store is not None:
            stack.callback(store.close)
            stack.callback(server.stop)
        try:
            ours.send(b"g")
            if server is not None and way == FILLED:
                server.begin_fill()
                server.laid_out()
            (wrong,) = struct.unpack("<Q", _all_of(ours, 8))
            took_us = np.frombuffer(_all_of(ours, 8 * touches), np.uint64) / 1e3
        except OSError as error:
            raise StepFailed(f"the program that touches memory ended early: {error}") from error
        if wrong:
            raise StepFailed(f"{wrong} of {touches} pages were wrong")
        said = {"faults": float(server.faults), "fault_ms": server.fault_s * 1e3} if server is not None else {}
    return took_us, said


def _server(talk: socket.socket, pages: int) -> tuple[LazyServer, PageStore]:
    message, fds, _, _ = socket.recv_fds(talk, 8, 1)
    if len(message) < 8:
        raise StepFailed("the program that touches memory could not make a userfaultfd: its error is above")
    first = struct.unpack("<Q", message)[0] // PAGE_BYTES
    store = PageStore(pages + 1)
    with store.room_for(pages) as window:
        contents = np.frombuffer(window, np.uint8).reshape(pages, PAGE_BYTES)
        contents[:] = (np.arange(pages) % 251 + 1).astype(np.uint8)[:, None]
    store.take(pages)
    supply = Supply(np.arange(first, first + pages, dtype=np.uint64), np.arange(1, pages + 1))
    server = LazyServer()
    server.add(LazySpace(fds[0], supply, address_of(memoryview(store.map)), gives_back=True))
    server.start()
    return server, store


def _all_of(talk: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = talk.recv(size - len(data))
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "no word from it")
        data += part
    return data


def measure(*, size_bytes: int = 200 << 20, touches: int = 1000, runs: int = 5) -> dict[str, Any]:
    """Each way in turn, `runs` times. ``touch_us``: spread over all touches; ``stalled_ms``: all touches of a run
    together; ``ratio``: the median touch over the kernel's, ``ratio_stalled`` the same of the sums."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)  # as the process that serves faults does
    pages = size_bytes // PAGE_BYTES
    found: dict[str, list[tuple[npt.NDArray[np.float64], dict[str, float]]]] = {way: [] for way in WAYS}
    try:
        for _ in range(runs):
            for way, results in found.items():
                results.append(touched(way, pages=pages, touches=touches))
    finally:
        sys.setswitchinterval(before_s)
    summary: list[dict[str, Any]] = [
        {
            "strategy": way,
            "workload": format_bytes(size_bytes),
            "n": runs,
            "touch_us": spread(np.concatenate([took_us for took_us, _ in results]).tolist()),
            "stalled_ms": spread([float(took_us.sum()) / 1e3 for took_us, _ in results]),
        }
        | {name: median([said[name] for _, said in results]) for name in results[0][1]}
        for way, results in found.items()
    ]
    for entry in summary:
        entry["ratio"] = entry["touch_us"]["p50"] / summary[0]["touch_us"]["p50"]
        entry["ratio_stalled"] = entry["stalled_ms"]["p50"] / summary[0]["stalled_ms"]["p50"]
    return {
        "machine": machine(),
        "parameters": {"size_bytes": size_bytes, "touches": touches, "runs": runs, "think_us": THINK_S * 1e6},
        "runs": [
            {"strategy": way, "stalled_ms": float(took_us.sum()) / 1e3} | said
            for way, results in found.items()
            for took_us, said in results
        ],
        "summary": summary,
    }


def run(console: Console, *, size_bytes: int = 200 << 20, touches: int = 1000, runs: int = 5) -> dict[str, Any]:
    """Measure on this host and print a table."""
    result = measure(size_bytes=size_bytes, touches=touches, runs=runs)
    rows = [
        (
            entry["strategy"],
            str(entry["n"]),
            *(f"{entry['touch_us'][part]:.1f} us" for part in ("p50", "p95")),
            f"{entry['ratio']:.0f}x",
            table.ms(entry["stalled_ms"]["p50"]),
            f"{entry['ratio_stalled']:.0f}x",
            f"{entry['faults']:.0f}" if "faults" in entry else "-",
        )
        for entry in result["summary"]
    ]
    headings = ("memory", "n", "touch p50", "p95", "to kernel", f"{touches} touches", "to kernel", "faults")
    table.show(console, headings, rows)
    return result


if __name__ == "__main__":
    program(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
