"""Pages read out of the processes of a tree, batch by batch: one thread reads the next while the caller uses this one.

Batches are small enough to stay in the processor's cache between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.ranges import Ranges, split, union
from whimbrel.memory.tracker import ProcessPages
from whimbrel.model.units import PAGE_BYTES

BATCH_BYTES = 1 << 21


class Pages(NamedTuple):
    """Pages of one process: its pid inside the container, byte ranges, and their contents in that order."""

    ns_pid: int
    ranges: Ranges
    contents: memoryview


def read_ahead(dirty: list[ProcessPages]) -> Iterator[Pages]:
    """Per process in order of address. Contents are good until the next batch is asked for; pages that vanish
    meanwhile are left out."""
    buffers = [bytearray(BATCH_BYTES) for _ in range(2)]
    pieces = _pieces(dirty)
    first = next(pieces, None)
    if first is None:
        return
    with ThreadPoolExecutor(1, "read-pages") as reader:
        turn = 0
        reading: Future[Pages] | None = reader.submit(_read, first, buffers[0])
        while reading is not None:
            ready = reading.result()
            following = next(pieces, None)
            turn = 1 - turn
            reading = None
            if following is not None:
                reading = reader.submit(_read, following, buffers[turn])
            if len(ready.contents):
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


def _pieces(dirty: list[ProcessPages]) -> Iterator[ProcessPages]:
    """The same pages in pieces of at most `BATCH_BYTES`."""
    for process in dirty:
        rows = split(process.ranges, BATCH_BYTES)
        ends = np.cumsum((rows[:, 1] - rows[:, 0]).astype(np.int64))
        first, done = 0, 0
        while first < len(rows):
            last = max(first + 1, int(np.searchsorted(ends, done + BATCH_BYTES, side="right")))
            yield ProcessPages(process.pid, process.ns_pid, rows[first:last])
            first, done = last, int(ends[last - 1])


def _read(piece: ProcessPages, buffer: bytearray) -> Pages:
    view = memoryview(buffer)[: piece.size_bytes]
    ranges = piece.ranges
    missing = read_pages_into(piece.pid, ranges, view)
    if len(missing):
        ranges, view = _without(ranges, missing, view)
    return Pages(piece.ns_pid, ranges, view)


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
