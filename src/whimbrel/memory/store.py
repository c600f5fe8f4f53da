"""The destination's store of pages that came ahead: contents in one anonymous file, an index in memory.

Contents are only appended; a page that crosses again points to its newest copy. The file is a memfd, so a
page's way into the restored process is one copy (UFFDIO_COPY out of the mapping), and nothing remains after a crash.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES

Pages = npt.NDArray[np.uint64]
"""Shape (n,): page numbers (address / 4096), ascending, unique."""

GROWTH_PAGES = 1 << 14


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


@dataclass
class ProcessIndex:
    """Where the newest copy of each page of one process lies: `slots[i]` holds page number `pages[i]`."""

    pages: Pages = field(default_factory=lambda: np.empty(0, np.uint64))
    slots: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def update(self, pages: Pages, first_slot: int) -> None:
        """`pages` were appended from `first_slot` on."""
        slots = np.arange(first_slot, first_slot + len(pages), dtype=np.int64)
        at = np.searchsorted(self.pages, pages)
        known = np.zeros(len(pages), bool)
        inside = at < len(self.pages)
        known[inside] = self.pages[at[inside]] == pages[inside]
        self.slots[at[known]] = slots[known]
        if not known.all():
            self.pages = np.insert(self.pages, at[~known], pages[~known])
            self.slots = np.insert(self.slots, at[~known], slots[~known])

    def span(self, ranges: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """For each byte range: where its pages begin and end in `pages`."""
        low = np.searchsorted(self.pages, ranges[:, 0] // np.uint64(PAGE_BYTES))
        high = np.searchsorted(self.pages, ranges[:, 1] // np.uint64(PAGE_BYTES))
        return low, high

    def stretches(self, ranges: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
        """The pages of the byte ranges, in order, as (first slot, count) of what is contiguous in the store."""
        _, slots = self.select(ranges)
        if len(slots) == 0:
            return []
        cut = np.flatnonzero(np.diff(slots) != 1) + 1
        starts = np.concatenate(([0], cut))
        counts = np.diff(np.concatenate((starts, [len(slots)])))
        return list(zip(slots[starts].tolist(), counts.tolist(), strict=True))

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
    """Pages of all processes of one container. `view` is the whole file, writable."""

    def __init__(self, expected_pages: int) -> None:
        self._fd = os.memfd_create("whimbrel-pages", os.MFD_CLOEXEC)
        self._capacity_pages = 0
        self.used_pages = 0
        self.index: dict[int, ProcessIndex] = {}
        self.recent: dict[int, list[Pages]] = {}
        self._map: mmap.mmap | None = None
        self._reserve(max(expected_pages, GROWTH_PAGES))

    def _reserve(self, pages: int) -> None:
        """Grow the file; addresses of the mapping change, so nothing may hold one across rounds."""
        if pages <= self._capacity_pages:
            return
        capacity = max(pages, self._capacity_pages * 5 // 4, self._capacity_pages + GROWTH_PAGES)
        try:
            os.posix_fallocate(self._fd, 0, capacity * PAGE_BYTES)
        except OSError as error:
            raise StepFailed(
                f"the destination has no {capacity * PAGE_BYTES >> 20} MiB of memory for arriving pages: {error.strerror}"
            ) from error
        if self._map is not None:
            self._map.close()
        self._map = mmap.mmap(self._fd, capacity * PAGE_BYTES)
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._capacity_pages = capacity

    def room_for(self, pages: int) -> memoryview:
        """A writable window for the next `pages` pages; `commit` then gives them their meaning."""
        self._reserve(self.used_pages + pages)
        assert self._map is not None
        start = self.used_pages * PAGE_BYTES
        return memoryview(self._map)[start : start + pages * PAGE_BYTES]

    def commit(self, ns_pid: int, pages: Pages, *, recent: bool) -> None:
        """The window that `room_for` gave now holds `pages` of process `ns_pid`, in order.

        `recent` marks pages that were written while we watched: they are wanted first after the resume.
        """
        self.index.setdefault(ns_pid, ProcessIndex()).update(pages, self.used_pages)
        self.used_pages += len(pages)
        if recent:
            self.recent.setdefault(ns_pid, []).append(pages)

    def recent_pages(self, ns_pid: int, limit: int) -> Pages:
        """Up to `limit` page numbers of the latest rounds, newest rounds first, returned ascending."""
        chosen: list[Pages] = []
        for pages in reversed(self.recent.get(ns_pid, [])):
            if limit <= 0:
                break
            chosen.append(pages[:limit])
            limit -= len(pages)
        if not chosen:
            return np.empty(0, np.uint64)
        # not np.unique: its first call imports 20 ms of modules, and this runs inside the freeze
        pages = np.sort(np.concatenate(chosen))
        return pages[np.concatenate(([True], pages[1:] != pages[:-1]))]

    @property
    def map(self) -> mmap.mmap:
        assert self._map is not None
        return self._map

    def close(self) -> None:
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None
        os.close(self._fd)
