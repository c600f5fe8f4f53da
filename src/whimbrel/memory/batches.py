"""Pages read out of the processes of a tree, batch by batch: one thread reads the next while the caller uses this one.

Batches are small enough to stay in the processor's cache between the two. What else is to be done to a batch before
it is used can be done in the reading thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.ranges import Ranges, union
from whimbrel.memory.tracker import ProcessPages
from whimbrel.model.units import PAGE_BYTES

BATCH_BYTES = 1 << 21

T = TypeVar("T")


class Pages(NamedTuple):
    """Pages of one process: its pid inside the container, byte ranges, and their contents in that order; how long it
    took to read them."""

    ns_pid: int
    ranges: Ranges
    contents: memoryview
    took_s: float


def read_ahead(dirty: list[ProcessPages]) -> Iterator[Pages]:
    """Per process in order of address. Contents are good until the next batch is asked for; pages that vanish
    meanwhile are left out."""
    return made_ahead(dirty, lambda pages: pages, lambda: BATCH_BYTES)


def made_ahead(dirty: list[ProcessPages], make: Callable[[Pages], T], size_bytes: Callable[[], int]) -> Iterator[T]:
    """The same, with each batch as `make` returns it; `make` runs in the reading thread. `size_bytes` is asked for
    the most that the next batch may hold (at most `BATCH_BYTES`)."""
    buffers = [bytearray(BATCH_BYTES) for _ in range(2)]
    pieces = _pieces(dirty, size_bytes)

    def read(buffer: bytearray) -> tuple[T | None, bool]:
        """The next batch (None when all of it has vanished), and whether there was one."""
        piece = next(pieces, None)
        if piece is None:
            return None, False
        pages = _read(piece, buffer)
        return (make(pages) if len(pages.contents) else None), True

    with ThreadPoolExecutor(1, "read-pages") as reader:
        turn = 0
        reading: Future[tuple[T | None, bool]] = reader.submit(read, buffers[0])
        while True:
            ready, more = reading.result()
            if not more:
                return
            turn = 1 - turn
            reading = reader.submit(read, buffers[turn])
            if ready is not None:
                yield ready


def merged(*parts: list[ProcessPages]) -> list[ProcessPages]:
    """One entry per process, with the pages of all parts in order of address."""
    by_pid: dict[int, ProcessPages] = {}
    for part in parts:
        for pages in part:
            before = by_pid.get(pages.pid)
            ranges = pages.ranges if before is None else union(before.ranges, pages.ranges)
            by_pid[pages.pid] = ProcessPages(pages.pid, pages.ns_pid, ranges)
    return list(by_pid.values())


def _pieces(dirty: list[ProcessPages], size_bytes: Callable[[], int]) -> Iterator[ProcessPages]:
    """The same pages in pieces of at most `size_bytes()` each."""
    for process in dirty:
        ranges = process.ranges
        ends = np.cumsum((ranges[:, 1] - ranges[:, 0]).astype(np.int64))
        done, size = 0, process.size_bytes
        while done < size:
            until = min(done + size_bytes(), size)
            yield ProcessPages(process.pid, process.ns_pid, _cut(ranges, ends, done, until))
            done = until


def _cut(ranges: Ranges, ends: NDArray[np.int64], start: int, stop: int) -> Ranges:
    """The part of `ranges` between byte `start` and byte `stop` of their contents; `ends`: where each row ends."""
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, stop, side="left"))
    rows = ranges[first : last + 1].copy()
    rows[-1, 1] -= np.uint64(int(ends[last]) - stop)
    rows[0, 0] = ranges[first, 1] - np.uint64(int(ends[first]) - start)
    return rows


def _read(piece: ProcessPages, buffer: bytearray) -> Pages:
    start_s = time.monotonic()
    view = memoryview(buffer)[: piece.size_bytes]
    ranges = piece.ranges
    missing = read_pages_into(piece.pid, ranges, view)
    if len(missing):
        ranges, view = _without(ranges, missing, view)
    return Pages(piece.ns_pid, ranges, view, time.monotonic() - start_s)


def _without(ranges: Ranges, missing: Ranges, view: memoryview) -> tuple[Ranges, memoryview]:
    """Leave the missing pages out of a batch, page by page: rare, so plain."""
    gone = {page for start, end in missing.tolist() for page in range(start, end, PAGE_BYTES)}
    kept: list[tuple[int, int]] = []
    parts = bytearray()
    at = 0
    for start, end in ranges.tolist():
        for page in range(start, end, PAGE_BYTES):
            if page not in gone:
                kept.append((page, page + PAGE_BYTES))
                parts += view[at : at + PAGE_BYTES]
            at += PAGE_BYTES
    return np.array(kept, np.uint64).reshape(-1, 2), memoryview(parts)
