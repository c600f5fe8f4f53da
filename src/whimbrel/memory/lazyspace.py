"""What one restored address space still lacks: the layout by which the compiled part places pages (`place.c`), and what
changes it: pages that come, and what the program does with its memory meanwhile.

Pages are placed in this order: what the program waits for; *hot* pages, which came last or were written again and again
while it was watched; what lies around the place it waited at; what it *needed* first when it last arrived; *warm*
pages, written once; and then the rest. Programs that read on where they are get what lies around first. For one thread.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from whimbrel.memory.needed import MOST_STRETCHES, NOTHING, Stretches, found_in
from whimbrel.memory.placing import Order, Queue, Space, library
from whimbrel.memory.store import Pages, runs_of
from whimbrel.memory.supply import MISSING, Indices, Supply
from whimbrel.model.units import PAGE_BYTES

GONE = -2
"""Instead of a slot: given back or unmapped by the program, or placed and not kept; if it is not there, it reads as
zeros."""


class LazySpace:
    """Page number `_pages[i]` (ascending) is number `_of[i]` of the supply, which a fork shares, and lies in slot
    `_slots[i]` of the store unless that is `MISSING` or `GONE`. `_settled[i]` is 0 while the page is to be placed out
    of the store. `_cut[i]` is 1 where page i does not lie next to page i - 1, in the program or in the store.

    `needed`: where it had to wait when it last arrived. `layout`: pages, numbers and slots, if not all of the supply's
    at its own places. `gives_back`: what is placed is not kept in the store. Until
    the memory is `laid_out`, a copy may be refused because the mapping is still to come; later it has gone.
    """

    def __init__(
        self,
        uffd: int,
        supply: Supply,
        store_address: int,
        *,
        gives_back: bool = False,
        needed: Stretches = NOTHING,
        layout: tuple[Pages, Indices, Indices] | None = None,
    ) -> None:
        self.supply = supply
        self._library = library()
        self.placing = Space(uffd=uffd, store=store_address, gives_back=gives_back)
        self._waiting: set[int] = set()
        self._missed = np.empty((MOST_STRETCHES, 2), np.int64)
        self.placing.missed = Queue(self._missed.ctypes.data, 0, len(self._missed))
        self._lay_out(*(layout or (supply.pages, np.arange(len(supply.pages)), supply.slots.copy())))
        self._queue_written()
        self._queue_runs("needed", found_in(self._pages, needed))

    @property
    def uffd(self) -> int:
        return int(self.placing.uffd)

    @property
    def gone(self) -> bool:
        """Has the process ended?"""
        return bool(self.placing.gone)

    @property
    def faults(self) -> int:
        return int(self.placing.faults)

    @property
    def filled_pages(self) -> int:
        return int(self.placing.filled_pages)

    def missed(self) -> Stretches:
        """Where the program had to wait for its pages, or would have had to next, in that order."""
        return self._missed[: self.placing.missed.first]

    def _lay_out(self, pages: Pages, of: Indices, slots: Indices, settled: npt.NDArray[np.uint8] | None = None) -> None:
        """What was hot, needed or warm comes with the rest from now on."""
        pages = np.ascontiguousarray(pages, np.uint64)
        slots = np.ascontiguousarray(slots, np.int64)
        settled = (slots < 0).astype(np.uint8) if settled is None else settled
        cut = np.ones(len(pages), np.uint8)
        cut[1:] = (np.diff(pages) != 1) | (np.diff(slots) != 1)
        placing = self.placing
        placing.pages, placing.slots, placing.count = pages.ctypes.data, slots.ctypes.data, len(pages)
        placing.settled, placing.cut = settled.ctypes.data, cut.ctypes.data
        placing.hot, placing.needed, placing.warm = Queue(), Queue(), Queue()
        placing.next = placing.spent_at = placing.spent_slot = placing.spent = 0
        placing.follow = placing.follow_end = placing.reads_on = 0
        # Only now, when nothing can fail any more, may what was there so far go.
        self._pages, self._of, self._slots, self._settled, self._cut = pages, of, slots, settled, cut
        self._runs = dict.fromkeys(("hot", "needed", "warm"), NOTHING)

    def _queue_written(self) -> None:
        again, once = self.supply.first
        self._queue("hot", self._own(again))
        self._queue("warm", self._own(once))

    def _queue(self, name: str, indices: Indices) -> None:
        """These ascending indices come next after those that wait in the queue already."""
        self._queue_runs(name, runs_of(indices))

    def _queue_runs(self, name: str, runs: npt.NDArray[np.int64]) -> None:
        queue = getattr(self.placing, name)
        runs = np.concatenate((self._runs[name][queue.first : queue.end], runs))
        self._runs[name] = runs
        queue.runs, queue.first, queue.end = runs.ctypes.data, 0, len(runs)

    def alive(self) -> bool:
        return bool(self._library.alive(ctypes.byref(self.placing)))

    # --- placing ------------------------------------------------------------------------------------------
    def serve_fault(self, address: int) -> None:
        """Place the page at `address` and its close neighbours; one that never existed becomes zeros, and so does what
        follows it; one that has not come yet is asked for."""
        lacking = self._library.serve_fault(ctypes.byref(self.placing), address)
        if lacking >= 0:
            self.ask(lacking)

    def ask(self, index: int) -> None:
        """Somebody waits for page `index`, which has not come yet."""
        self._waiting.add(int(self._pages[index]))
        self.supply.request(int(self._of[index]))

    def serve_waiting(self) -> None:
        """Pages have come: place those that somebody waits for."""
        waiting, self._waiting = self._waiting, set()
        for page in waiting:
            at = int(self._pages.searchsorted(np.uint64(page)))
            if at < len(self._pages) and self._pages[at] == page and self._slots[at] == MISSING:
                self.ask(at)
            else:
                self._library.serve_waiting(ctypes.byref(self.placing), page)

    def fill(self, order: Order, limit: int) -> int:
        """Place up to `limit` pages of those that are due by `order`. Returns how many, 0 when it has to be tried
        again, -1 when there are none."""
        return int(self._library.fill(ctypes.byref(self.placing), order, limit))

    # --- what comes ---------------------------------------------------------------------------------------
    def awaits(self) -> bool:
        """Is something on its way still?"""
        return not self.gone and bool((self._slots == MISSING).any())

    def arrived(self, indices: Indices) -> None:
        """These of the supply have come: they were written last, so they go where they belong at once."""
        self._come(self._own(indices))
        self.serve_waiting()

    def catch_up(self) -> None:
        """Take in what came between the making of this and now, while nobody told it."""
        lacking = np.flatnonzero(self._slots == MISSING)
        self._come(lacking[self.supply.slots[self._of[lacking]] != MISSING])

    def _come(self, indices: Indices) -> None:
        indices = indices[self._slots[indices] == MISSING]
        if len(indices):
            self._slots[indices] = self.supply.slots[self._of[indices]]
            self._settled[indices] = 0
            edges = np.concatenate((indices, indices + 1))
            edges = edges[(edges > 0) & (edges < len(self._pages))]
            apart = self._pages[edges] - self._pages[edges - 1] != 1
            apart |= self._slots[edges] - self._slots[edges - 1] != 1
            self._cut[edges] = apart
            self.placing.next = min(self.placing.next, int(indices[0]))
            self._queue("hot", indices)

    def _own(self, indices: Indices) -> Indices:
        """Which ones these of the supply are here, ascending."""
        if len(self._of) == len(self.supply.pages) and np.array_equal(self._of[indices], indices):
            return indices
        known = np.zeros(len(self.supply.pages), bool)
        known[indices] = True
        return np.flatnonzero(known[self._of])

    # --- events -------------------------------------------------------------------------------------------
    def moved(self, source: int, target: int, length: int) -> None:
        """mremap: what lay at [source, source+length) is now wanted at `target`."""
        first, last = source // PAGE_BYTES, (source + length) // PAGE_BYTES
        here = self._slots != GONE
        pages = self._pages[here].astype(np.int64)
        pages[(pages >= first) & (pages < last)] += target // PAGE_BYTES - first
        order = np.argsort(pages, kind="stable")
        settled = self._settled[here][order]
        self._lay_out(pages[order].astype(np.uint64), self._of[here][order], self._slots[here][order], settled)

    def dropped(self, start: int, end: int) -> None:
        """Unmapped or given back: the range reads as zeros from now on."""
        low, high = self._pages.searchsorted(np.array((start, end), np.uint64) // np.uint64(PAGE_BYTES)).tolist()
        self._slots[low:high] = GONE
        self._settled[low:high] = 1

    def forked(self, uffd: int) -> LazySpace:
        """A child lacks what its parent lacks, so that the store must keep it from now on. What the parent has already
        is tried again if it was kept: better twice than never. (What was not the child has: from a fork on until its
        event is read the kernel refuses all copies.)"""
        self.placing.gives_back = False
        layout = (self._pages, self._of, self._slots.copy())
        child = LazySpace(uffd, self.supply, self.placing.store, layout=layout)
        child.placing.laid_out = self.placing.laid_out
        return child
