"""Pages into a restored process that already runs: faults are answered first, the rest is filled meanwhile.

CRIU hands over one userfaultfd per process (missing mode) with the events fork, remap, remove and unmap. One thread
does it all, in turns: what the kernel says, then one short step of the fill. So nothing is ever placed by a layout that
an event has just changed, no fault waits for a thread to wake up, and none behind more than that one step. The turns
are compiled (`place.c`); what is not only faults comes back to here.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

from whimbrel.memory.lazyspace import LazySpace
from whimbrel.memory.placing import Answer, Filling, Server, Space, library
from whimbrel.memory.store import Pages
from whimbrel.memory.supply import Indices, Supply
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES

_ADDRESS = struct.Struct("<Q")
_PAGEFAULT, _FORK, _REMAP, _REMOVE, _UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
IDLE_NS = 50_000_000
FAILED_S = 0.01
"""What the kernel cannot say now, for want of memory or descriptors, it will say later."""


class LazyServer:
    """Serves the faults of all address spaces of one container until all of them are whole.

    `keep` is given each userfaultfd, also those that forks add (see `keeper`)."""

    def __init__(self, keep: Callable[[int], None] = lambda _: None) -> None:
        self._keep = keep
        self._library = library()
        self._spaces: dict[int, LazySpace] = {}
        self._poll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._bell, select.EPOLLIN)
        self._gate = threading.Lock()  # holds what other threads hand in
        self._added: list[LazySpace] = []
        self._arrived: deque[tuple[Supply, Indices]] = deque()
        self._whole = threading.Event()
        self._hot_placed = threading.Event()
        self._error: Exception | None = None
        self._filling, self._laid_out = Filling.NO_PAGES, False
        self._began_s = self._fill_s = 0.0
        self._past_faults = self._past_pages = 0  # of processes that are gone
        self._stop = threading.Event()
        self._turns = Server(epoll=self._poll.fileno(), bell=self._bell)
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)

    # --- from other threads -------------------------------------------------------------------------------
    def add(self, space: LazySpace) -> None:
        self._keep(space.uffd)
        with self._gate:
            self._added.append(space)
            self._whole.clear()
        self._ring()

    def arrived(self, supply: Supply, pages: Pages, slots: Indices) -> None:
        """Pages of a process came into the store."""
        indices = supply.arrived(pages, slots)
        with self._gate:
            self._hot_placed.clear()
            self._arrived.append((supply, indices))
        self._ring()

    def given_up(self) -> None:
        """Pages that were on their way will never come."""
        self._ring()

    def start(self) -> None:
        if not self._thread.ident:
            self._thread.start()

    @property
    def faults(self) -> int:
        return self._past_faults + sum(space.faults for space in list(self._spaces.values()))

    @property
    def filled_pages(self) -> int:
        return self._past_pages + sum(space.filled_pages for space in list(self._spaces.values()))

    @property
    def fault_s(self) -> float:
        """Time from reading faults to having answered them, all together."""
        return float(self._turns.fault_ns) / 1e9

    def begin_fill(self, which: Filling = Filling.ALL_PAGES) -> None:
        """Begin to fill, or go on to all pages: as much as there are mappings for. The fill does not end before
        `laid_out`."""
        with self._gate:
            if self._filling >= which:
                return
            self._began_s = self._began_s if self._filling else time.monotonic()
            self._filling = which
        self.start()
        self._ring()

    def laid_out(self) -> None:
        """All address spaces are added and all their mappings are there: what the kernel does not know is gone."""
        self._laid_out = True
        self._ring()

    def wait_for_hot(self, limit_s: float) -> bool:
        """Until all hot pages that have come are in place, if the fill has begun; False when they are not within the
        time."""
        return self._hot_placed.wait(limit_s) if self._filling else False

    def filled(self) -> tuple[int, float]:
        """Wait for the end of the fill; returns (bytes placed, ms). Address spaces that came after its end are filled
        too: whoever is told that all is in place lets the source go. Raises StepFailed when the rest never comes."""
        self._whole.wait()
        if self._error is not None:
            raise self._error
        return self.filled_pages * PAGE_BYTES, self._fill_s * 1e3

    def stop(self) -> None:
        """Close every userfaultfd: what is not mapped by now reads as zeros, so only call it when whole."""
        self._stop.set()
        self._ring()
        if self._thread.ident:
            self._thread.join(timeout=2)
        for uffd in self._spaces:
            os.close(uffd)
        self._spaces.clear()
        self._poll.close()
        os.close(self._bell)

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    # --- the thread ---------------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._heed(Answer(self._library.serve(ctypes.byref(self._turns), IDLE_NS)))
            except Exception as error:  # whoever waits for the fill must hear of it; faults are answered on
                self._error = error
                self._whole.set()

    def _heed(self, answer: Answer) -> None:
        """See to what the turns have come back for."""
        if answer is Answer.BELL:
            self._hear()
        elif answer is Answer.MESSAGES:
            self._change(self._meant(), self._turns.messages())
        elif answer is Answer.ASKED:
            for index in self._turns.asked():
                self._meant().ask(index)
        elif answer is Answer.ENDED:
            self._retire(self._meant())
        elif answer is Answer.FAILED:
            time.sleep(FAILED_S)
            raise OSError(self._turns.size, os.strerror(self._turns.size))
        elif answer is Answer.HOT_PLACED:
            with self._gate:
                if not (self._added or self._arrived):
                    self._hot_placed.set()
        elif self._turns.end_told and not self._whole.is_set():
            self._end_fill()

    def _meant(self) -> LazySpace:
        return list(self._spaces.values())[int(self._turns.of)]

    def _line_up(self) -> None:
        """Tell the turns whom there is."""
        spaces = list(self._spaces.values())
        self._lined_up = (ctypes.POINTER(Space) * len(spaces))(*(ctypes.pointer(space.placing) for space in spaces))
        self._turns.spaces, self._turns.count = self._lined_up, len(spaces)

    def _hear(self) -> None:
        """Take in what other threads have brought."""
        os.eventfd_read(self._bell)
        with self._gate:
            added, self._added = self._added, []
        for space in added:
            self._take_in(space)
        laid_out = self._laid_out
        for space in self._spaces.values():
            space.placing.laid_out = laid_out
        self._turns.filling, self._turns.laid_out = self._filling, laid_out
        self._turns.hot_told = self._turns.end_told = False
        while self._arrived:
            supply, indices = self._arrived.popleft()
            for space in list(self._spaces.values()):
                if space.supply is supply:
                    space.arrived(indices)

    def _take_in(self, space: LazySpace) -> None:
        for dead in [old for old in self._spaces.values() if not old.alive()]:
            self._retire(dead)
        space.catch_up()  # pages that came before it was known here were told to nobody
        self._spaces[space.uffd] = space
        self._line_up()
        self._poll.register(space.uffd, select.EPOLLIN)

    def _retire(self, space: LazySpace) -> None:
        """A service may fork all the time while it is filled: what is kept for each child would add up."""
        self._poll.unregister(space.uffd)
        del self._spaces[space.uffd]
        self._line_up()
        os.close(space.uffd)
        self._past_faults += space.faults
        self._past_pages += space.filled_pages

    def _change(self, space: LazySpace, messages: list[bytes]) -> None:
        """Events, and faults after them although the kernel says faults first: who caused an event goes on once it is
        read, and a page placed by the old layout would be wrong for good (MADV_DONTNEED, mremap)."""
        for message in messages:
            if message[0] == _REMAP:
                space.moved(*struct.unpack_from("<QQQ", message, 8))
            elif message[0] in (_REMOVE, _UNMAP):
                space.dropped(*struct.unpack_from("<QQ", message, 8))
            elif message[0] == _FORK:
                child = space.forked(struct.unpack_from("<I", message, 8)[0])
                self._keep(child.uffd)
                self._whole.clear()
                self._take_in(child)
        self._turns.end_told = False
        began_ns = time.monotonic_ns()
        faults = [_ADDRESS.unpack_from(message, 16)[0] for message in messages if message[0] == _PAGEFAULT]
        for address in faults:
            space.serve_fault(address)
        if faults:
            self._turns.fault_ns += time.monotonic_ns() - began_ns

    def _end_fill(self) -> None:
        """Is all of it in place? Raises StepFailed when the rest will never come."""
        with self._gate:
            lacking = [space for space in self._spaces.values() if space.awaits()]
            if self._added or self._arrived:
                return
            if not lacking:
                self._fill_s = time.monotonic() - self._began_s
                self._whole.set()
        for space in lacking:
            if space.supply.lost:
                raise StepFailed(f"{space.supply.missing()} pages of the service never came")
