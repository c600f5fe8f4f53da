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
from collections.abc import Callable

from whimbrel.model.units import PAGE_BYTES

_POPULATE_WRITE = 23  # Linux 5.14
_STEP_BYTES = 1 << 20
"""Up to 3 ms. Who maps memory meanwhile waits that long, and to start a thread is to map memory: with steps of 16 MiB
the restore was seen to begin 80 ms late."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def address_of(buffer: memoryview) -> int:
    """The address of a writable buffer in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def populate(address: int, size_bytes: int, wanted: Callable[[], bool]) -> None:
    """Have the kernel put memory there, for as long as it is wanted; where it cannot, the first touch will find out."""
    for at in range(0, size_bytes, _STEP_BYTES):
        if not wanted():
            return
        _libc.madvise(address + at, min(_STEP_BYTES, size_bytes - at), _POPULATE_WRITE)


class Reserve:
    """Memory that is held for others, until they take it; `hold` works in a thread."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes // PAGE_BYTES * PAGE_BYTES
        self._map = mmap.mmap(-1, max(PAGE_BYTES, self.size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = address_of(memoryview(self._map))
        self._released = False
        self._holding = threading.Lock()

    def hold(self) -> None:
        """Take the memory."""
        with self._holding:
            populate(self._address, self.size_bytes, lambda: not self._released)

    def release(self, size_bytes: int | None = None) -> None:
        """From now on the kernel has it at hand: so much of it, or all. Safe to repeat."""
        self._released = True
        with self._holding:
            first_bytes = self.size_bytes if size_bytes is None else min(size_bytes, self.size_bytes)
            _libc.madvise(self._address, first_bytes, mmap.MADV_DONTNEED)
