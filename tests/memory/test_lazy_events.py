"""A process that moves, drops, forks and reads its memory at random while that is being filled: every page is right."""

from __future__ import annotations

import os
import platform
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from whimbrel.memory.lazy import LazyServer
from whimbrel.memory.lazyspace import LazySpace
from whimbrel.memory.reserve import address_of
from whimbrel.memory.store import PageStore
from whimbrel.memory.supply import MISSING, Supply

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a userfaultfd that sees all faults needs root")
PAGE_BYTES, PAGES, BATCHES, BLOCK = 4096, 2000, 40, 100
PROGRAM = Path(__file__).with_name("restless.py")
USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]


def gave_back(store: PageStore) -> bool:
    """Does the store lack any of its pages?"""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), 8 * PAGES, 8 * (address_of(memoryview(store.map)) // PAGE_BYTES + 1))
    return not (np.frombuffer(entries, np.uint64) >> np.uint64(63)).all()


@pytest.mark.parametrize("kept", [False, True], ids=["given back", "kept"])
@pytest.mark.parametrize("late", [False, True], ids=["all here", "half comes later"])
@pytest.mark.parametrize("seed", range(4))
def test_every_page_is_right_whatever_the_program_does_meanwhile(seed: int, late: bool, kept: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = subprocess.Popen(
            [sys.executable, PROGRAM, str(theirs.fileno()), str(USERFAULTFD), str(seed), str(PAGES)],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        message, (uffd,), _, _ = socket.recv_fds(ours, 8, 1)
        first = struct.unpack("<Q", message)[0] // PAGE_BYTES
        store = PageStore(0)
        with store.room_for(PAGES) as window:
            for page in range(PAGES):
                window[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes([page % 251 + 1]) * PAGE_BYTES
        store.take(PAGES)
        pages = np.arange(first, first + PAGES, dtype=np.uint64)
        slots = np.arange(1, PAGES + 1)
        late_blocks = np.random.default_rng(seed).choice(PAGES // BLOCK, PAGES // BLOCK // 2, replace=False)
        missing = (late_blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1) if late else np.arange(0)
        known = slots.copy()
        known[missing] = MISSING
        supply = Supply(pages, known, lambda _: None)
        server = LazyServer()
        server.add(LazySpace(uffd, supply, address_of(memoryview(store.map)), gives_back=not kept))
        server.start()
        server.begin_fill()
        server.laid_out()
        deadline_s = time.monotonic() + 20
        while not (kept or gave_back(store)):  # before the first fork: from then on all is kept
            assert time.monotonic() < deadline_s, "nothing is given back"
        ours.send(b"g")
        for part in np.array_split(np.sort(missing), BATCHES):
            if len(part):
                time.sleep(0.002)
                server.arrived(supply, pages[part], slots[part])
        server.filled()
        wrong = struct.unpack("<Q", ours.recv(8))[0]
        ours.send(b"x")
        assert program.wait(timeout=20) == 0
        server.stop()
        assert wrong == 0
