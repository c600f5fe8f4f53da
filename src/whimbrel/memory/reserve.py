"""Memory that is there before it is needed.

The host of a virtual machine gives it memory when it is first touched, page by page, and takes back what lies free for
some seconds. A first touch was measured at 13 us a page where the host has to give it, 1.4 us where the kernel has it:
for 130 MB that is 430 ms instead of 45. So what a freeze will need is touched before it, and what has served its turn
is given to the kernel while more is taken: it hands out first what came last.
"""

from __future__ import annotations

import ctypes
import mmap
import threading

from whimbrel.model.units import PAGE_BYTES

_POPULATE_WRITE = 23  # Linux 5.14
_STEP_BYTES = 16 << 20

# Populating takes long: others may run meanwhile. Giving a little back does not, and to get Python's lock again would.
_libc, _short = ctypes.CDLL(None, use_errno=True), ctypes.PyDLL(None)
for _library in (_libc, _short):
    _library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def address_of(buffer: memoryview) -> int:
    """The address of a writable buffer in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def populate(address: int, size_bytes: int) -> None:
    """Have the kernel put memory there; where it cannot, the first touch will find out."""
    _libc.madvise(address, size_bytes, _POPULATE_WRITE)


def give_back(address: int, size_bytes: int) -> None:
    """The kernel may use this memory for something else: it reads as zeros from now on."""
    _short.madvise(address, size_bytes, mmap.MADV_DONTNEED)


class Reserve:
    """Memory that is held for others, until they take it; `hold` works in a thread."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes // PAGE_BYTES * PAGE_BYTES
        self._map = mmap.mmap(-1, max(PAGE_BYTES, self.size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = address_of(memoryview(self._map))
        self._released = False
        self._holding = threading.Lock()

    def hold(self) -> None:
        """Take the memory, step by step."""
        for at in range(0, self.size_bytes, _STEP_BYTES):
            with self._holding:
                if self._released:
                    return
                populate(self._address + at, min(_STEP_BYTES, self.size_bytes - at))

    def release(self, size_bytes: int | None = None) -> None:
        """From now on the kernel has it at hand: so much of it, or all. Safe to repeat."""
        self._released = True
        with self._holding:
            first_bytes = self.size_bytes if size_bytes is None else min(size_bytes, self.size_bytes)
            _libc.madvise(self._address, first_bytes, mmap.MADV_DONTNEED)
