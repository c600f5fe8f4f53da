"""A store of pages: contents in one stretch of memory, and an index. The destination keeps there what came ahead.

Contents are only appended; a page that crosses again points to its newest copy. A page's way into the restored
process is one copy (UFFDIO_COPY out of the stretch), and nothing remains after a crash. The first page of the stretch
holds zeros, for all pages that do.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from whimbrel.memory.reserve import address_of, populate
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES

Pages = npt.NDArray[np.uint64]
"""Shape (n,): page numbers (address / 4096), ascending, unique."""

ZERO_SLOT = 0
UNKNOWN = -1
TOUCH_PAGES = 1 << 12
LIST_PAGES = 1 << 20
RESERVE_BYTES = 128 << 20
SPARE_BYTES = 256 << 20
"""What must be left besides where memory is touched ahead: nothing is refused for the sake of that."""
_MAP_NORESERVE = 0x4000  # Python names it from 3.13 on


def pages_of(ranges: npt.NDArray[np.uint64]) -> Pages:
    """Expand byte ranges of shape (n, 2) into page numbers, in order."""
    if len(ranges) == 0:
        return np.empty(0, np.uint64)
    first = ranges[:, 0] // PAGE_BYTES
    counts = (ranges[:, 1] // PAGE_BYTES - first).astype(np.int64)
    ends = np.cumsum(counts)
    steps = np.ones(int(ends[-1]), np.uint64)
    steps[0] = first[0]
    steps[ends[:-1]] = first[1:] - (first[:-1] + counts[:-1].astype(np.uint64) - np.uint64(1))
    return np.cumsum(steps, dtype=np.uint64)


def runs_of(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers that follow each other by one, put together: shape (n, 2), first and how many, in the order given."""
    cut = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = np.concatenate(([0], cut))[: len(numbers)]
    counts = np.diff(np.concatenate((starts, [len(numbers)])))
    runs: npt.NDArray[np.int64] = np.stack((numbers[starts], counts), axis=1)
    return runs


@dataclass
class ProcessIndex:
    """Where the newest copy of each page of one process lies: `slots[i]` holds page number `pages[i]`.

    Arrivals are only noted; `merge` sorts them in, once a round: doing it for every frame was a third of the time
    of receiving.
    """

    pages: Pages = field(default_factory=lambda: np.empty(0, np.uint64))
    slots: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    _arrived: list[tuple[Pages, npt.NDArray[np.int64]]] = field(default_factory=list)
    _highest_arrived: int = -1

    def note(self, pages: Pages, slots: npt.NDArray[np.int64]) -> None:
        """The newest copies of `pages` lie in `slots` from now on."""
        if len(pages):
            self._arrived.append((pages, slots))
            self._highest_arrived = max(self._highest_arrived, int(pages[-1]))

    def merge(self) -> None:
        """Take in what was noted, in the order of arrival. Call before any look-up but `find`."""
        while self._arrived:
            count = 1  # as many frames as ascend together
            while count < len(self._arrived) and self._arrived[count][0][0] > self._arrived[count - 1][0][-1]:
                count += 1
            frames, self._arrived = self._arrived[:count], self._arrived[count:]
            self._update(
                np.concatenate([pages for pages, _ in frames]),
                np.concatenate([slots for _, slots in frames]),
            )
        self._highest_arrived = -1

    def _update(self, pages: Pages, slots: npt.NDArray[np.int64]) -> None:
        if len(self.pages) == 0:
            self.pages, self.slots = pages, slots
            return
        at, known = self._locate(pages)
        self.slots[at[known]] = slots[known]
        if not known.all():
            self.pages = np.insert(self.pages, at[~known], pages[~known])
            self.slots = np.insert(self.slots, at[~known], slots[~known])

    def _locate(self, pages: Pages) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """For each of the ascending pages: where in `pages` it is or would be, and whether it is there."""
        at = np.searchsorted(self.pages, pages)
        known = np.zeros(len(pages), bool)
        inside = at < len(self.pages)
        known[inside] = self.pages[at[inside]] == pages[inside]
        return at, known

    def find(self, pages: Pages) -> npt.NDArray[np.int64]:
        """The slots of the newest copies of the ascending pages, `UNKNOWN` where there is none."""
        if len(pages) and int(pages[0]) <= self._highest_arrived:
            self.merge()  # only then: for every batch of a first pass over 2 GB, it took half of the time
        at, known = self._locate(pages)
        slots = np.full(len(pages), UNKNOWN, np.int64)
        slots[known] = self.slots[at[known]]
        return slots

    def span(self, ranges: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """For each byte range: where its pages begin and end in `pages`."""
        low = np.searchsorted(self.pages, ranges[:, 0] // np.uint64(PAGE_BYTES))
        high = np.searchsorted(self.pages, ranges[:, 1] // np.uint64(PAGE_BYTES))
        return low, high

    def zeros(self) -> Pages:
        """The pages that hold nothing but zeros."""
        zeros: Pages = self.pages[self.slots == ZERO_SLOT]
        return zeros

    def stretches(self, ranges: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
        """The pages of the byte ranges, in order, as (first slot, count) of what is contiguous in the store."""
        _, slots = self.select(ranges)
        return [(first, count) for first, count in runs_of(slots).tolist()]

    def select(self, ranges: npt.NDArray[np.uint64]) -> tuple[Pages, npt.NDArray[np.int64]]:
        """Copies of the pages and slots that lie in the ascending byte ranges."""
        low, high = self.span(ranges)
        parts = [slice(first, last) for first, last in zip(low.tolist(), high.tolist(), strict=True) if first < last]
        if not parts:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        return (
            np.concatenate([self.pages[part] for part in parts]),
            np.concatenate([self.slots[part] for part in parts]),
        )


class PageStore:
    """Pages of all processes of one container.

    One reservation of address space as large as the host's memory, so that nothing ever moves; memory is taken as
    it is written. What is expected is touched ahead in a thread, because first touches are the slowest part of
    receiving. No huge pages: clearing them was measured eight times slower than small ones (0.4 against 3.4 GB/s).
    """

    def __init__(self, expected_pages: int, *, ahead_pages: int = 0) -> None:
        """`expected_pages` are touched at once, and always `ahead_pages` more than have come."""
        self._capacity_pages = os.sysconf("SC_PHYS_PAGES")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.map = mmap.mmap(-1, self._capacity_pages * PAGE_BYTES, flags=flags)
        self._address = address_of(memoryview(self.map))
        self.used_pages = ZERO_SLOT + 1
        self._listed_pages = 0
        self.index: dict[int, ProcessIndex] = {}
        self.recent: dict[int, list[Pages]] = {}
        self._closing = False
        self._touched_pages = 0
        self._expected_pages, self._ahead_pages = expected_pages, ahead_pages
        self._expected_touched, self._more_came = threading.Event(), threading.Event()
        self._ahead = threading.Thread(target=self._touch, name="touch", daemon=True)
        self._ahead.start()

    def _touch(self) -> None:
        """Populate what is expected, then what is ahead, piece by piece, never behind what has arrived."""
        at = 0
        while not self._closing:
            at = max(at, self.used_pages // TOUCH_PAGES * TOUCH_PAGES)
            wanted = max(self._expected_pages, self.used_pages + self._ahead_pages if self._ahead_pages else 0)
            spare = at < self._expected_pages or not short_of_memory(SPARE_BYTES)
            if at < min(wanted, self._capacity_pages) and spare:
                populate(self._address + at * PAGE_BYTES, TOUCH_PAGES * PAGE_BYTES, partial(self._still_wanted, at))
                at = self._touched_pages = at + TOUCH_PAGES
                continue
            self._expected_touched.set()
            if not self._ahead_pages:
                return
            self._more_came.wait()
            self._more_came.clear()
        self._expected_touched.set()

    def _still_wanted(self, at: int) -> bool:
        return not self._closing and (at < self._expected_pages or self._ahead_pages > 0)

    def touch_no_more(self) -> None:
        """What comes now is the last: memory ahead of it would be for nothing."""
        self._ahead_pages = 0
        self._more_came.set()

    def wait_touched(self) -> None:
        """Until all that is expected has its memory."""
        self._expected_touched.wait()

    def room_for(self, pages: int) -> memoryview:
        """A writable window for the next `pages` pages, the first of them in slot `used_pages`; `take` keeps them.

        Raises StepFailed when the host is about to run out of memory.
        """
        end = self.used_pages + pages
        takes_more = end > self._touched_pages and end // TOUCH_PAGES > self.used_pages // TOUCH_PAGES
        if end > self._capacity_pages or (takes_more and short_of_memory()):
            raise self._full()
        return memoryview(self.map)[self.used_pages * PAGE_BYTES : end * PAGE_BYTES]

    def take(self, pages: int) -> None:
        """The first `pages` pages of the window that `room_for` gave are filled."""
        self.used_pages += pages
        self._more_came.set()

    def commit(self, ns_pid: int, pages: Pages, slots: npt.NDArray[np.int64]) -> None:
        """The newest copies of the ascending `pages` of process `ns_pid` lie in `slots`, `ZERO_SLOT` for zeros.

        Raises StepFailed when the host is about to run out of memory: pages of zeros take none here, but their names
        do.
        """
        self._listed_pages += len(pages)
        if self._listed_pages >= LIST_PAGES:
            self._listed_pages = 0
            if short_of_memory():
                raise self._full()
        self.of(ns_pid).note(pages, slots)

    def of(self, ns_pid: int) -> ProcessIndex:
        return self.index.setdefault(ns_pid, ProcessIndex())

    def words(self) -> npt.NDArray[np.uint64]:
        """All slots as arrays of 64-bit words, shape (slots, 512), not copied."""
        return np.frombuffer(self.map, np.uint64).reshape(-1, PAGE_BYTES // 8)

    def written(self, ns_pid: int, pages: Pages) -> None:
        """These pages were written while we watched: they are wanted first after the resume."""
        self.recent.setdefault(ns_pid, []).append(pages)

    def _full(self) -> StepFailed:
        return StepFailed(
            f"the destination is out of memory after {self.used_pages * PAGE_BYTES >> 20} MiB of pages: "
            "free some there or choose another node"
        )

    def merge(self) -> None:
        """Make everything that has arrived findable, and short what is known of who was written how often: once, or
        again and again."""
        for index in self.index.values():
            index.merge()
        for ns_pid, written in self.recent.items():
            if len(written) > 2:
                pages, times = np.unique(np.concatenate(written), return_counts=True)
                self.recent[ns_pid] = [pages, pages[times > 1]]

    def close(self) -> None:
        self._closing = True
        self._more_came.set()
        self._ahead.join()
        with contextlib.suppress(BufferError):
            self.map.close()


def short_of_memory(wanted_bytes: int = 0) -> bool:
    """Would the host be about to run out of memory with so much more of it taken?"""
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024 < RESERVE_BYTES + wanted_bytes
    return False
