"""Pages placed into a process's memory by userfaultfd, tried on this very process."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from whimbrel.memory.lazy import LazySpace, address_of
from whimbrel.memory.supply import Supply
from whimbrel.model.units import PAGE_BYTES

USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]
UFFDIO_API, UFFDIO_REGISTER, MISSING = 0xC018AA3F, 0xC020AA00, 1
PAGES = 96

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: userfaultfd")


@pytest.fixture
def uffd() -> Iterator[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    fcntl.ioctl(fd, UFFDIO_API, struct.pack("<QQQ", 0xAA, 0, 0))
    yield fd
    os.close(fd)


@pytest.mark.parametrize("splits", [(), (1,), (37,), (50, 51, 60), (95,)])
def test_a_run_of_pages_over_several_mappings_arrives_whole(uffd: int, splits: tuple[int, ...]) -> None:
    """The kernel refuses a copy that reaches from one mapping into the next; neighbours in the store may lie so."""
    store = mmap.mmap(-1, PAGES * PAGE_BYTES)
    for page in range(PAGES):
        store[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = struct.pack("<Q", page + 1) * 512
    target = mmap.mmap(-1, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for index, (start, end) in enumerate(zip((0, *splits), (*splits, PAGES), strict=True)):
        if index % 2:  # every other part with an advice of its own, which makes it a mapping of its own
            target.madvise(mmap.MADV_DONTFORK, start * PAGE_BYTES, (end - start) * PAGE_BYTES)
    with memoryview(target) as view, memoryview(store) as contents:
        base = address_of(view)
        fcntl.ioctl(uffd, UFFDIO_REGISTER, struct.pack("<QQQQ", base, PAGES * PAGE_BYTES, MISSING, 0))
        pages = np.arange(PAGES, dtype=np.uint64) + np.uint64(base // PAGE_BYTES)
        space = LazySpace(uffd, Supply(pages, np.arange(PAGES, dtype=np.int64)), address_of(contents))
        placed = space.fill(threading.Event())
    assert placed == PAGES * PAGE_BYTES
    # a page that did not arrive would make the comparison wait for ever: ask the kernel first
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(base // PAGE_BYTES * 8)
        present = [bool(entry >> 63) for entry in struct.unpack(f"<{PAGES}Q", pagemap.read(PAGES * 8))]
    assert all(present), f"missing: {[page for page, there in enumerate(present) if not there]}"
    assert target[:] == store[:]
    target.close()
