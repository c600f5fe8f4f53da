"""Pages into a restored process that already runs: faults are answered first, the rest is filled meanwhile.

CRIU hands over one userfaultfd per process (missing mode) with the events fork, remap, remove and unmap. One thread
does it all, in turns: what the kernel says, then one short step of the fill. So nothing is ever placed by a layout that
an event has just changed, no fault waits for a thread to wake up or for Python's lock, and none behind more than that
one step.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from whimbrel.memory.lazyspace import LazySpace
from whimbrel.memory.store import Pages
from whimbrel.memory.supply import Indices, Supply
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES

_MESSAGE_BYTES, _MOST_MESSAGES = 32, 64
_ADDRESS = struct.Struct("<Q")
_PAGEFAULT, _FORK, _REMAP, _REMOVE, _UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
IDLE_S = 0.05
FILL_PAGES = 128
"""A step of the fill while no faults come: some 0.15 ms."""
BURST_PAGES = 8
"""A step of the fill while they come, and have to wait for it."""
HOT_PAGES = 64
"""A step of hot pages at any time: the sooner they are all there the fewer faults there will be."""
BURST_S = 0.002
READ_ON_PAGES = 128
"""A step for a program that reads on, at any time: most likely it is the next one who waits for it."""
ORDER_OF_FILL = (
    LazySpace.fill_read_on, LazySpace.fill_hot, LazySpace.fill_around, LazySpace.fill_warm, LazySpace.fill_rest,
)  # fmt: skip
LEAST_PAGES = {LazySpace.fill_hot: HOT_PAGES, LazySpace.fill_read_on: READ_ON_PAGES}
UNMAPPED_S = 0.0002
"""After so long memory that was not mapped yet is tried again."""


class LazyServer:
    """Serves the faults of all address spaces of one container until all of them are whole.

    `keep` is given each userfaultfd, also those that forks add (see `keeper`)."""

    def __init__(self, keep: Callable[[int], None] = lambda _: None) -> None:
        self._keep = keep
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
        self._filling = self._laid_out = self._held = False
        self._began_s = self._fill_s = 0.0
        self._last_fault_s = 0.0
        self._past_faults = self._past_pages = 0  # of processes that are gone
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)
        self.fault_s = 0.0
        """Time from reading faults to having answered them, all together."""

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

    def start(self) -> None:
        if not self._thread.ident:
            self._thread.start()

    @property
    def faults(self) -> int:
        return self._past_faults + sum(space.faults for space in list(self._spaces.values()))

    @property
    def filled_pages(self) -> int:
        return self._past_pages + sum(space.filled_pages for space in list(self._spaces.values()))

    def begin_fill(self) -> None:
        """Begin to fill, unless that has begun: as much as there are mappings for. The fill does not end before
        `laid_out`."""
        with self._gate:
            if self._filling:
                return
            self._filling, self._began_s = True, time.monotonic()
        self.start()
        self._ring()

    @contextlib.contextmanager
    def fill_held(self) -> Iterator[None]:
        """The fill stands still for the block, faults are answered: each step of the fill takes Python's lock, and a
        thread that makes many short calls would wait for it after each of them."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
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
        wait_s = IDLE_S
        while not self._stop.is_set():
            try:
                # Who is meant, before one of them retires another whose descriptor's number is used anew.
                heard = [(self._spaces.get(fd), events) for fd, events in self._poll.poll(wait_s)]
                for space, events in heard:
                    if space is None:
                        self._hear()
                    elif self._spaces.get(space.uffd) is space:
                        self._look(space, events)
                wait_s = self._place_some() if self._filling and not self._held else IDLE_S
            except Exception as error:  # whoever waits for the fill must hear of it; faults are answered on
                self._error = error
                self._whole.set()
                wait_s = IDLE_S

    def _hear(self) -> None:
        """Take in what other threads have brought."""
        os.eventfd_read(self._bell)
        with self._gate:
            added, self._added = self._added, []
        for space in added:
            self._take_in(space)
        for space in self._spaces.values():
            space.laid_out = self._laid_out
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
        self._poll.register(space.uffd, select.EPOLLIN)

    def _look(self, space: LazySpace, events: int) -> None:
        if events & ~select.EPOLLIN or space.gone:
            self._retire(space)  # the process has exited
            return
        began_s = time.monotonic()
        try:
            messages = os.read(space.uffd, _MOST_MESSAGES * _MESSAGE_BYTES)
        except BlockingIOError:
            return
        faults = []
        for at in range(0, len(messages), _MESSAGE_BYTES):
            if messages[at] == _PAGEFAULT:
                faults.append(_ADDRESS.unpack_from(messages, at + 16)[0])
            else:
                self._change(space, messages[at : at + _MESSAGE_BYTES])
        # After the events, although the kernel says faults first: who caused an event goes on once it is read, and a
        # page placed by the old layout would be wrong for good (MADV_DONTNEED, mremap).
        for address in faults:
            space.serve_fault(address)
        if faults:
            self._last_fault_s = time.monotonic()
            self.fault_s += self._last_fault_s - began_s

    def _retire(self, space: LazySpace) -> None:
        """A service may fork all the time while it is filled: what is kept for each child would add up."""
        space.gone = True
        self._poll.unregister(space.uffd)
        del self._spaces[space.uffd]
        os.close(space.uffd)
        self._past_faults += space.faults
        self._past_pages += space.filled_pages

    def _change(self, space: LazySpace, message: bytes) -> None:
        event = message[0]
        if event == _REMAP:
            space.moved(*struct.unpack_from("<QQQ", message, 8))
        elif event in (_REMOVE, _UNMAP):
            space.dropped(*struct.unpack_from("<QQ", message, 8))
        elif event == _FORK:
            child = space.forked(struct.unpack_from("<I", message, 8)[0])
            self._keep(child.uffd)
            self._whole.clear()
            self._take_in(child)

    def _place_some(self) -> float:
        """One step of the fill. Returns for how many seconds there is nothing more to do."""
        limit = BURST_PAGES if time.monotonic() - self._last_fault_s < BURST_S else FILL_PAGES
        for space in [space for space in self._spaces.values() if space.gone]:
            self._retire(space)
        spaces = list(self._spaces.values())
        wait_s = IDLE_S
        for step in ORDER_OF_FILL:
            for space in spaces:
                done = step(space, max(limit, LEAST_PAGES.get(step, 0)))
                if done > 0 or (done == 0 and space.laid_out):  # 0: an event is to be read first
                    return 0
                if done == 0:
                    wait_s = UNMAPPED_S
            if step is LazySpace.fill_hot and self._laid_out and not self._hot_placed.is_set():
                with self._gate:
                    if not (self._added or self._arrived):
                        self._hot_placed.set()
        if self._laid_out and wait_s == IDLE_S and not self._whole.is_set():
            self._end_fill()
        return wait_s

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
