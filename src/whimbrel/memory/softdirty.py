"""The kernel's soft-dirty bits: set where a page was written since they were cleared. Many kernels have none."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Iterable
from functools import cache

from whimbrel.model.units import PAGE_BYTES

_SOFT_DIRTY = 1 << 55
_CLEAR_SOFT_DIRTY = b"4"


@cache
def has_soft_dirty() -> bool:
    """Whether a write shows in the page map after the bits were cleared (CONFIG_MEM_SOFT_DIRTY). Tried on our own
    memory: writing to clear_refs succeeds everywhere."""
    with mmap.mmap(-1, PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[0] = 1
        at = ctypes.addressof(ctypes.c_char.from_buffer(area)) // PAGE_BYTES * 8
        try:
            _clear(os.getpid())
            clean = not _entry(at) & _SOFT_DIRTY
            area[0] = 2
            return clean and bool(_entry(at) & _SOFT_DIRTY)
        except OSError:
            return False


def clear_soft_dirty(pids: Iterable[int]) -> None:
    """Let all memory of these processes count as unwritten; nothing happens where the kernel has no such bits, or to
    processes that are gone."""
    if has_soft_dirty():
        for pid in pids:
            with contextlib.suppress(OSError):
                _clear(pid)


def _clear(pid: int) -> None:
    with open(f"/proc/{pid}/clear_refs", "wb", buffering=0) as clear:
        clear.write(_CLEAR_SOFT_DIRTY)


def _entry(at: int) -> int:
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(at)
        return int(struct.unpack("<Q", pagemap.read(8))[0])
