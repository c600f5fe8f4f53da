"""Pages into a restored process that already runs: faults are answered first, the rest is filled meanwhile.

CRIU hands over one userfaultfd per process (missing mode) with the events fork, remap, remove and unmap.
Faults are served by one thread and the fill by another, which gives way: a fault that waited behind the fill would
stall the program page by page. Both work under the lock of the address space (see `lazyspace`).
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from whimbrel.memory.lazyspace import LazySpace
from whimbrel.memory.store import Pages
from whimbrel.memory.supply import Indices, Supply

_MESSAGE_BYTES = 32
_PAGEFAULT, _FORK, _REMAP, _REMOVE, _UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16


class LazyServer:
    """Serves the faults of all address spaces of one container until all of them are whole.

    `keep` is given each userfaultfd, also those that forks add (see `keeper`)."""

    def __init__(self, keep: Callable[[int], None] = lambda _: None) -> None:
        self._keep = keep
        self._spaces: dict[int, LazySpace] = {}
        self._poll = select.epoll()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="faults", daemon=True)
        self._filling: Future[tuple[int, float]] | None = None

    def add(self, space: LazySpace) -> None:
        self._keep(space.uffd)
        self._spaces[space.uffd] = space
        self._poll.register(space.uffd, select.EPOLLIN)

    def arrived(self, supply: Supply, pages: Pages, slots: Indices) -> None:
        """Pages of a process came into the store."""
        indices = supply.arrived(pages, slots)
        for space in list(self._spaces.values()):
            if space.supply is supply:
                space.wanted = True
                with space.lock:
                    space.wanted = False
                    space.arrived(indices)

    def start(self) -> None:
        self._thread.start()

    @property
    def faults(self) -> int:
        return sum(space.faults for space in list(self._spaces.values()))

    def begin_fill(self) -> None:
        """Begin to fill, in a thread of its own, unless that has begun; the address spaces must be laid out by now."""
        if self._filling is not None:
            return
        future: Future[tuple[int, float]] = Future()
        self._filling = future

        def run() -> None:
            started_s = time.monotonic()
            try:
                future.set_result((self.fill_all(), (time.monotonic() - started_s) * 1e3))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="fill", daemon=True).start()

    def filled(self) -> tuple[int, float]:
        """Wait for the end of the fill; returns (bytes placed, ms). Address spaces that came after its end are filled
        too: whoever is told that all is in place lets the source go. Raises StepFailed."""
        assert self._filling is not None
        placed, took_ms = self._filling.result()
        return placed + self.fill_all(), took_ms

    def fill_all(self) -> int:
        """Fill every address space, the ones that forks add meanwhile too. Returns bytes placed. Raises StepFailed."""
        placed = 0
        filled: set[int] = set()
        while len(filled) < len(self._spaces):
            for uffd, space in list(self._spaces.items()):
                if uffd not in filled:
                    placed += space.fill(self._stop)
                    filled.add(uffd)
        return placed

    def stop(self) -> None:
        """Close every userfaultfd: what is not mapped by now reads as zeros, so only call it when whole."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        for uffd in self._spaces:
            os.close(uffd)
        self._spaces.clear()
        self._poll.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            for uffd, events in self._poll.poll(timeout=0.05):
                space = self._spaces[uffd]
                if events & ~select.EPOLLIN or space.gone:
                    self._poll.unregister(uffd)  # the process has exited
                    space.gone = True
                    continue
                self._answer(space)

    def _answer(self, space: LazySpace) -> None:
        """Read and handle what has come, with the fill held off: once an event is read the program goes on, and a
        page that the fill then still placed by the old layout would be wrong for good (MADV_DONTNEED, mremap)."""
        space.wanted = True
        with space.lock:
            space.wanted = False
            try:
                messages = os.read(space.uffd, 64 * _MESSAGE_BYTES)
            except BlockingIOError:
                return
            for at in range(0, len(messages), _MESSAGE_BYTES):
                self._handle(space, messages[at : at + _MESSAGE_BYTES])

    def _handle(self, space: LazySpace, message: bytes) -> None:
        event = message[0]
        if event == _PAGEFAULT:
            space.serve_fault(struct.unpack_from("<Q", message, 16)[0])
        elif event == _REMAP:
            space.moved(*struct.unpack_from("<QQQ", message, 8))
        elif event in (_REMOVE, _UNMAP):
            space.dropped(*struct.unpack_from("<QQ", message, 8))
        elif event == _FORK:
            self.add(space.forked(struct.unpack_from("<I", message, 8)[0]))


def address_of(buffer: memoryview) -> int:
    """The address of a writable buffer in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
