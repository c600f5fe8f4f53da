"""Pages into a restored process that already runs: faults are answered first, the rest is filled meanwhile.

CRIU hands over one userfaultfd per process (missing mode) with the events fork, remap, remove and unmap.
A `LazySpace` is what one address space still lacks. Faults are served by one thread and the fill by another, which
gives way: a fault that waited behind the fill would stall the program page by page. Both work under the space's lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from whimbrel.memory.store import Pages
from whimbrel.memory.supply import MISSING, Supply
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES

_COPY, _ZEROPAGE, _WAKE = 0xC028AA03, 0xC020AA04, 0x8010AA02
_MESSAGE_BYTES = 32
_PAGEFAULT, _FORK, _REMAP, _REMOVE, _UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
FILL_CHUNK_PAGES = 128
FAULT_AROUND_PAGES = 8


class LazySpace:
    """What one address space still lacks: page number `_pages[i]` is `_of[i]` of the supply, which a fork shares."""

    def __init__(self, uffd: int, supply: Supply, store_address: int) -> None:
        self.uffd = uffd
        self.supply = supply
        self._pages, self._of = supply.pages, np.arange(len(supply.pages))
        self._store = store_address
        self._waiting: set[int] = set()
        self.lock = threading.Lock()
        self.wanted = False
        self.faults = 0
        self.gone = False

    def _copy(self, page: int, slot: int, count: int) -> int:
        """UFFDIO_COPY of `count` pages; returns the pages that are done with, 0 when the kernel asks to wait."""
        done, step = 0, count
        while done < count:
            step = min(step, count - done)
            argument = bytearray(struct.pack(
                "<QQQQq", (page + done) * PAGE_BYTES, self._store + (slot + done) * PAGE_BYTES,
                step * PAGE_BYTES, 0, 0,
            ))  # fmt: skip
            try:
                fcntl.ioctl(self.uffd, _COPY, argument)
                done, step = done + step, count
            except OSError as error:
                copied = max(0, int(struct.unpack_from("<q", argument, 32)[0])) // PAGE_BYTES
                done += copied
                if copied:
                    continue
                if error.errno == errno.ENOENT and step > 1:
                    step //= 2  # one call must stay within one mapping, and two may touch
                elif error.errno in (errno.EEXIST, errno.ENOENT):  # there already, or unmapped meanwhile
                    done += 1
                elif error.errno == errno.ESRCH:
                    self.gone = True
                    return count
                else:  # EAGAIN: an event waits to be read before the layout is certain again
                    return done
        return done

    def _wake(self, page: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.uffd, _WAKE, struct.pack("<QQ", page * PAGE_BYTES, PAGE_BYTES))

    def serve_fault(self, address: int) -> None:
        """Place the page at `address` (and its close followers); a page that never existed becomes zeros."""
        page = address // PAGE_BYTES
        self.faults += 1
        at = int(np.searchsorted(self._pages, np.uint64(page)))
        if at < len(self._pages) and int(self._pages[at]) == page:
            self._place_around(page, at)
            return
        argument = bytearray(struct.pack("<QQQq", page * PAGE_BYTES, PAGE_BYTES, 0, 0))
        try:
            fcntl.ioctl(self.uffd, _ZEROPAGE, argument)
        except OSError as error:
            if error.errno == errno.ESRCH:
                self.gone = True
            self._wake(page)

    def _place_around(self, page: int, at: int) -> None:
        """Place the page at index `at` and what follows it closely; one that has not come yet is asked for."""
        window = slice(at, at + FAULT_AROUND_PAGES)
        slots = self.supply.slots[self._of[window]]
        if slots[0] == MISSING:
            self._waiting.add(page)
            self.supply.request(int(self._of[at]))
            return
        steps = (np.diff(self._pages[window].astype(np.int64)) != 1) | (np.diff(slots) != 1)
        count = int(np.argmax(steps)) + 1 if steps.any() else len(slots)
        self._copy(page, int(slots[0]), count)
        self._wake(page)  # after EAGAIN it faults anew, when the event has been read

    def serve_waiting(self) -> None:
        """Pages have come: place those that somebody waits for."""
        waiting, self._waiting = self._waiting, set()
        for page in waiting:
            at = int(np.searchsorted(self._pages, np.uint64(page)))
            if at < len(self._pages) and int(self._pages[at]) == page:
                self._place_around(page, at)
            else:
                self._wake(page)  # moved or unmapped meanwhile: it faults anew, wherever it is now

    def fill(self, stop: threading.Event) -> int:
        """Place everything that is still lacking, waiting for what is on its way; returns the bytes placed. Gives way
        to faults and events. Raises StepFailed when the rest will never come."""
        placed = done = 0
        layout = self._pages
        while not stop.is_set() and not self.gone:
            while self.wanted:
                time.sleep(0.00005)  # a lock alone is not fair: the fill would take it again and again
            with self.lock:
                if layout is not self._pages:  # an event moved or dropped pages: what is there already is skipped fast
                    layout, done = self._pages, 0
                if done >= len(layout):
                    break
                window = slice(done, done + FILL_CHUNK_PAGES)
                pages = layout[window].astype(np.int64)
                self.supply.changed.clear()
                slots = self.supply.slots[self._of[window]]
                on_its_way = slots[0] == MISSING
                if not on_its_way:
                    cut = np.flatnonzero((np.diff(pages) != 1) | (np.diff(slots) != 1))
                    count = int(cut[0]) + 1 if len(cut) else len(pages)
                    moved = self._copy(int(pages[0]), int(slots[0]), count)
            if on_its_way:
                if self.supply.lost:
                    raise StepFailed(f"{self.supply.missing()} pages of the service never came")
                self.supply.changed.wait(0.05)
                continue
            done += moved
            placed += moved * PAGE_BYTES
            if moved == 0:
                time.sleep(0.0002)
        return placed

    def moved(self, source: int, target: int, length: int) -> None:
        """mremap: what lay at [source, source+length) is now wanted at `target`."""
        first, last = source // PAGE_BYTES, (source + length) // PAGE_BYTES
        inside = (self._pages >= first) & (self._pages < last)
        shift = target // PAGE_BYTES - first
        pages = self._pages.astype(np.int64)
        pages[inside] += shift
        order = np.argsort(pages, kind="stable")
        self._pages, self._of = pages[order].astype(np.uint64), self._of[order]

    def dropped(self, start: int, end: int) -> None:
        """Unmapped or given back: the range reads as zeros from now on."""
        keep = (self._pages < start // PAGE_BYTES) | (self._pages >= end // PAGE_BYTES)
        self._pages, self._of = self._pages[keep], self._of[keep]

    def forked(self, uffd: int) -> LazySpace:
        """A child lacks what its parent lacks."""
        child = LazySpace(uffd, self.supply, self._store)
        child._pages, child._of = self._pages, self._of
        return child


class LazyServer:
    """Serves the faults of all address spaces of one container until all of them are whole.

    `keep` is given each userfaultfd, also those that forks add (see `keeper`)."""

    def __init__(self, keep: Callable[[int], None] = lambda _: None) -> None:
        self._keep = keep
        self._spaces: dict[int, LazySpace] = {}
        self._poll = select.epoll()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="faults", daemon=True)
        self._new: list[LazySpace] = []

    def add(self, space: LazySpace) -> None:
        self._keep(space.uffd)
        self._spaces[space.uffd] = space
        self._poll.register(space.uffd, select.EPOLLIN)

    def arrived(self, supply: Supply, pages: Pages, slots: npt.NDArray[np.int64]) -> None:
        """Pages of a process came into the store."""
        supply.arrived(pages, slots)
        for space in list(self._spaces.values()):
            if space.supply is supply:
                space.wanted = True
                with space.lock:
                    space.wanted = False
                    space.serve_waiting()

    def start(self) -> None:
        self._thread.start()

    @property
    def faults(self) -> int:
        return sum(space.faults for space in self._spaces.values())

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
