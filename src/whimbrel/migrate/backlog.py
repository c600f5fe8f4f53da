"""Pages that follow the resume (post-copy): what is still to go, pushed in order, or out of order when asked.

The processes stand still at the source until the destination has all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from whimbrel.memory.batches import merged
from whimbrel.memory.codecs import Encoder
from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.ranges import Ranges, ranges_of, total_bytes
from whimbrel.memory.store import Pages, pages_of
from whimbrel.memory.tracker import ProcessPages
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.units import PAGE_BYTES

AROUND_PAGES = 8


@dataclass
class _Process:
    """`pages` ascend; `order`: which of them goes when, and `at` how far that has come."""

    pid: int
    pages: Pages
    order: npt.NDArray[np.intp]
    taken: npt.NDArray[np.bool_] = field(init=False)
    at: int = 0

    def __post_init__(self) -> None:
        self.taken = np.zeros(len(self.pages), bool)

    def take(self, indices: npt.NDArray[np.intp]) -> Pages:
        """Those of them that nobody has taken; they count as gone."""
        free = np.sort(indices[~self.taken[indices]])
        self.taken[free] = True
        return self.pages[free]

    def take_next(self, limit: int) -> Pages:
        """The same for the next in order; empty when all are gone."""
        while self.at < len(self.order):
            self.at += limit
            if len(pages := self.take(self.order[self.at - limit : self.at])):
                return pages
        return self.pages[:0]


class Backlog:
    """What is left, by the pid inside the container, in the order in which it is to go; a process may have several
    parts. Two threads use it: one pushes, one answers requests. Each page goes once, whoever takes it: of one that went
    twice nobody could say which copy a difference is to build on."""

    def __init__(self, left: list[ProcessPages]) -> None:
        self._processes = {whole.ns_pid: _process(whole, left) for whole in merged(left) if len(whole.ranges)}
        self._lock = threading.Lock()
        self._encoder = Encoder()

    def ranges(self) -> dict[int, bytes]:
        """{pid: byte ranges as pairs of uint64}, as `RestoreOrder.behind` carries them."""
        return {ns_pid: ranges_of(process.pages).tobytes() for ns_pid, process in self._processes.items()}

    @property
    def left_bytes(self) -> int:
        """Of pages that nobody has taken."""
        return sum(int(np.count_nonzero(~process.taken)) for process in self._processes.values()) * PAGE_BYTES

    @property
    def of_several(self) -> bool:
        """Processes, which may share pages."""
        return len(self._processes) > 1

    def take(self, limit_bytes: int) -> ProcessPages | None:
        """The next pages in order, so many bytes at most: whoever takes them sends them. None: there are no more."""
        with self._lock:
            for ns_pid, process in self._processes.items():
                if len(pages := process.take_next(max(1, limit_bytes // PAGE_BYTES))):
                    return ProcessPages(process.pid, ns_pid, ranges_of(pages))
        return None

    def answer(self, channel: PageChannel, ns_pid: int, page: int) -> None:
        """Somebody waits for this page: it goes next, with what follows it closely."""
        process = self._processes.get(ns_pid)
        if process is None:
            return
        at = int(np.searchsorted(process.pages, np.uint64(page)))
        if at < len(process.pages) and int(process.pages[at]) == page:
            self._send(channel, ns_pid, process, at)

    def all_again(self) -> None:
        """The link was cut: nobody knows what of it arrived."""
        with self._lock:
            for process in self._processes.values():
                process.taken[:] = False
                process.at = 0

    def _send(self, channel: PageChannel, ns_pid: int, process: _Process, first: int) -> None:
        with self._lock:
            pages = process.take(np.arange(first, min(first + AROUND_PAGES, len(process.pages))))
        if len(pages):
            ranges = ranges_of(pages)
            contents = _read(process.pid, ranges, keep_shared=self.of_several)
            channel.send_pages(ns_pid, self._encoder.plain(ranges, contents))


class Portions:
    """A backlog in portions of `size_bytes()` each, until that says 0 or all is taken (see `memory.batches.Pieces`)."""

    def __init__(self, backlog: Backlog, size_bytes: Callable[[], int]) -> None:
        self._backlog = backlog
        self._size_bytes = size_bytes
        self.of_several = backlog.of_several
        self.with_vanished = True

    def __iter__(self) -> Portions:
        return self

    def __next__(self) -> ProcessPages:
        limit_bytes = self._size_bytes()
        portion = self._backlog.take(limit_bytes) if limit_bytes > 0 else None
        if portion is None:
            raise StopIteration
        return portion


def _process(whole: ProcessPages, parts: list[ProcessPages]) -> _Process:
    pages = pages_of(whole.ranges)
    order = [np.searchsorted(pages, pages_of(part.ranges)) for part in parts if part.ns_pid == whole.ns_pid]
    return _Process(whole.pid, pages, np.concatenate(order))


def _read(pid: int, ranges: Ranges, *, keep_shared: bool) -> memoryview:
    """A page that is not there any more reads as zeros, which is what the program would find."""
    buffer = bytearray(total_bytes(ranges))
    read_pages_into(pid, ranges, buffer, keep_shared=keep_shared)
    return memoryview(buffer)


def unpack(behind: dict[int, bytes]) -> dict[int, Ranges]:
    """What `Backlog.ranges` packed. Raises ValueError for nonsense."""
    return {ns_pid: np.frombuffer(raw, np.uint64).reshape(-1, 2).copy() for ns_pid, raw in behind.items()}
