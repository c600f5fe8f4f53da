"""Pages read out of the processes of a tree, batch by batch: one thread reads the next while the caller uses this one.

Batches are small enough to stay in the processor's cache between the two. What else is to be done to a batch before
it is used can be done in the reading thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.ranges import Ranges, union
from whimbrel.memory.tracker import ProcessPages
from whimbrel.model.units import PAGE_BYTES

BATCH_BYTES, SHORT_BYTES = 1 << 21, 1 << 18

T = TypeVar("T")


class Pages(NamedTuple):
    """Pages of one process: its pid inside the container, byte ranges, and their contents in that order; how long it
    took to read them."""

    ns_pid: int
    ranges: Ranges
    contents: memoryview
    took_s: float


class PieceSource(Protocol):
    """Pages in pieces of at most `BATCH_BYTES` each. `of_several` processes, which may share pages: forked ones have
    theirs in common until one writes. `with_vanished`: a page that cannot be read any more crosses as zeros, which is
    what the program would find; else it is left out."""

    @property
    def of_several(self) -> bool: ...
    @property
    def with_vanished(self) -> bool: ...
    def __iter__(self) -> Iterator[ProcessPages]: ...
    def __next__(self) -> ProcessPages: ...


class Pieces:
    """The pages of a tree in pieces of at most `size_bytes()` (at most `BATCH_BYTES`) each, until it says 0."""

    def __init__(self, dirty: list[ProcessPages], size_bytes: Callable[[], int]) -> None:
        self._dirty = dirty
        self._size_bytes = size_bytes
        self._turn = self._done = 0
        self._ends = _ends(dirty[0]) if dirty else np.empty(0, np.int64)
        self.of_several = len({part.pid for part in dirty}) > 1
        self.with_vanished = False

    def __iter__(self) -> Iterator[ProcessPages]:
        return self

    def __next__(self) -> ProcessPages:
        while self._turn < len(self._dirty) and self._done >= self._dirty[self._turn].size_bytes:
            self._turn, self._done = self._turn + 1, 0
            if self._turn < len(self._dirty):
                self._ends = _ends(self._dirty[self._turn])
        if self._turn == len(self._dirty) or (limit_bytes := self._size_bytes()) <= 0:
            raise StopIteration
        start, process = self._done, self._dirty[self._turn]
        self._done = min(start + limit_bytes, process.size_bytes)
        return self._cut(process, start, self._done)

    def left(self) -> list[ProcessPages]:
        """What was in no piece so far."""
        rest = self._dirty[self._turn :]
        if rest and self._done >= rest[0].size_bytes:
            return rest[1:]
        return [self._cut(rest[0], self._done, rest[0].size_bytes), *rest[1:]] if rest else []

    def _cut(self, process: ProcessPages, start: int, stop: int) -> ProcessPages:
        return ProcessPages(process.pid, process.ns_pid, _cut(process.ranges, self._ends, start, stop))


class ReadAhead:
    """Reads pieces: one thread reads the next while the caller uses this one. For one caller at a time. Few pages
    the caller reads itself: another thread wakes up a millisecond later on a busy machine.

    Buffers and thread stay for the next call: to make them anew took longer than to read the few pages of a freeze."""

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []
        self._reader = ThreadPoolExecutor(1, "read-pages")

    def batches(self, pieces: PieceSource, make: Callable[[Pages], T], *, size_bytes: int = BATCH_BYTES) -> Iterator[T]:
        """Each piece read, and as `make` returns it; `make` runs where they are read. Contents are good until the
        next batch is asked for. `size_bytes`: so much comes."""
        while len(self._buffers) < 2:
            self._buffers.append(bytearray(BATCH_BYTES))

        def read(buffer: bytearray) -> tuple[T | None, bool]:
            """The next batch (None when all of it has vanished), and whether there was one."""
            piece = next(pieces, None)
            if piece is None:
                return None, False
            pages = _read(piece, buffer, keep_shared=pieces.of_several, with_vanished=pieces.with_vanished)
            return (make(pages) if len(pages.contents) else None), True

        if size_bytes <= SHORT_BYTES:
            more = True
            while more:
                ready, more = read(self._buffers[0])
                if ready is not None:
                    yield ready
            return
        turn = 0
        reading: Future[tuple[T | None, bool]] = self._reader.submit(read, self._buffers[0])
        try:
            while True:
                ready, more = reading.result()
                if not more:
                    return
                turn = 1 - turn
                reading = self._reader.submit(read, self._buffers[turn])
                if ready is not None:
                    yield ready
        finally:
            wait([reading])  # before the buffers are used again

    def all_of(self, dirty: list[ProcessPages]) -> Iterator[Pages]:
        """Per process in order of address."""
        return self.batches(Pieces(dirty, lambda: BATCH_BYTES), lambda pages: pages)

    def close(self) -> None:
        self._reader.shutdown()


def merged(*parts: list[ProcessPages]) -> list[ProcessPages]:
    """One entry per process, with the pages of all parts in order of address."""
    by_pid: dict[int, ProcessPages] = {}
    for part in parts:
        for pages in part:
            before = by_pid.get(pages.pid)
            ranges = pages.ranges if before is None else union(before.ranges, pages.ranges)
            by_pid[pages.pid] = ProcessPages(pages.pid, pages.ns_pid, ranges)
    return list(by_pid.values())


def _ends(process: ProcessPages) -> NDArray[np.int64]:
    """Where in the contents of all its ranges each one ends."""
    return np.cumsum((process.ranges[:, 1] - process.ranges[:, 0]).astype(np.int64))


def _cut(ranges: Ranges, ends: NDArray[np.int64], start: int, stop: int) -> Ranges:
    """The part of `ranges` between byte `start` and byte `stop` of their contents; `ends`: where each row ends."""
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, stop, side="left"))
    rows = ranges[first : last + 1].copy()
    rows[-1, 1] -= np.uint64(int(ends[last]) - stop)
    rows[0, 0] = ranges[first, 1] - np.uint64(int(ends[first]) - start)
    return rows


def _read(piece: ProcessPages, buffer: bytearray, *, keep_shared: bool, with_vanished: bool) -> Pages:
    start_s = time.monotonic()
    view = memoryview(buffer)[: piece.size_bytes]
    ranges = piece.ranges
    missing = read_pages_into(piece.pid, ranges, view, keep_shared=keep_shared)
    if len(missing) and not with_vanished:
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
