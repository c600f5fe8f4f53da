"""Pages out of the processes of a service and onto the page channel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.processes import ns_pid_of, tree_of
from whimbrel.memory.ranges import Ranges, as_ranges, split, total_bytes
from whimbrel.memory.tracker import ProcessPages
from whimbrel.memory.vmas import read_vmas
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.units import PAGE_BYTES

BATCH_BYTES = 1 << 21


class PageSender:
    """Reads pages out of the processes and sends them: one thread reads the next batch while this one sends.

    Batches are small enough to stay in the processor's cache between the two.
    """

    def __init__(self, channel: PageChannel) -> None:
        self._channel = channel
        self._buffers = [bytearray(BATCH_BYTES) for _ in range(2)]

    def send(self, dirty: list[ProcessPages]) -> int:
        """Send all pages; returns how many bytes of pages crossed. Pages that vanish meanwhile are left out."""
        sent = 0
        batches = _batches(dirty)
        first = next(batches, None)
        if first is None:
            return 0
        with ThreadPoolExecutor(1, "read-pages") as reader:
            turn = 0
            reading: Future[_Batch] | None = reader.submit(_read, first, self._buffers[0])
            while reading is not None:
                ready = reading.result()
                following = next(batches, None)
                turn = 1 - turn
                reading = None
                if following is not None:
                    reading = reader.submit(_read, following, self._buffers[turn])
                if len(ready.contents):
                    self._channel.send_pages(ready.ns_pid, ready.ranges, ready.contents)
                sent += len(ready.contents)
        return sent


@dataclass(frozen=True, eq=False)
class _Batch:
    ns_pid: int
    ranges: Ranges
    contents: memoryview


def _batches(dirty: list[ProcessPages]) -> Iterator[ProcessPages]:
    """The same pages in pieces of at most `BATCH_BYTES`."""
    for process in dirty:
        rows = split(process.ranges, BATCH_BYTES)
        ends = np.cumsum((rows[:, 1] - rows[:, 0]).astype(np.int64))
        first, done = 0, 0
        while first < len(rows):
            last = max(first + 1, int(np.searchsorted(ends, done + BATCH_BYTES, side="right")))
            yield ProcessPages(process.pid, process.ns_pid, rows[first:last])
            first, done = last, int(ends[last - 1])


def _read(piece: ProcessPages, buffer: bytearray) -> _Batch:
    view = memoryview(buffer)[: piece.size_bytes]
    ranges = piece.ranges
    missing = read_pages_into(piece.pid, ranges, view)
    if len(missing):
        ranges, view = _without(ranges, missing, view)
    return _Batch(piece.ns_pid, ranges, view)


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


def vdso_of(root_pid: int) -> list[ProcessPages]:
    """The code that the kernel maps into each process: no scan reports it as written, yet CRIU's page map lists it."""
    found = []
    for pid in tree_of(root_pid):
        with contextlib.suppress(ProcessLookupError):
            vdso = as_ranges((vma.start, vma.end) for vma in read_vmas(pid) if vma.name == "[vdso]")
            found.append(ProcessPages(pid, ns_pid_of(pid), vdso))
    return found


def pages_in(dirty: list[ProcessPages]) -> int:
    return sum(total_bytes(process.ranges) for process in dirty) // PAGE_BYTES
