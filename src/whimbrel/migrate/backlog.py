"""Pages that cross after the commit (post-copy): what is still to go, pushed in order, or out of order when asked.

The processes stand still at the source until the destination has all of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from whimbrel.memory.codecs import Encoder
from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.ranges import Ranges, ranges_of, total_bytes
from whimbrel.memory.store import Pages, pages_of
from whimbrel.memory.tracker import ProcessPages
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.units import PAGE_BYTES

PUSH_PAGES = 16  # a page that is asked for waits behind one push
AROUND_PAGES = 8


@dataclass
class _Process:
    pid: int
    pages: Pages
    sent: npt.NDArray[np.bool_] = field(init=False)
    at: int = 0

    def __post_init__(self) -> None:
        self.sent = np.zeros(len(self.pages), bool)

    def take(self, first: int, limit: int) -> Pages:
        """Up to `limit` pages from index `first` on that have not gone yet; they count as gone."""
        window = slice(first, first + limit)
        chosen = ~self.sent[window]
        self.sent[window] = True
        return self.pages[window][chosen]


class Backlog:
    """What is left, by the pid inside the container. Two threads use it: one pushes, one answers requests."""

    def __init__(self, left: list[ProcessPages]) -> None:
        self._processes = {part.ns_pid: _Process(part.pid, pages_of(part.ranges)) for part in left if len(part.ranges)}
        self._lock = threading.Lock()
        self._encoder = Encoder()

    def ranges(self) -> dict[int, bytes]:
        """{pid: byte ranges as pairs of uint64}, as `RestoreOrder.behind` carries them."""
        return {ns_pid: ranges_of(process.pages).tobytes() for ns_pid, process in self._processes.items()}

    def push_all(self, channel: PageChannel) -> None:
        """Send everything, in order. Raises StepFailed when the link breaks or a page cannot be read."""
        for ns_pid, process in self._processes.items():
            while process.at < len(process.pages):
                self._send(channel, ns_pid, process, process.at, PUSH_PAGES)
                process.at += PUSH_PAGES

    def answer(self, channel: PageChannel, ns_pid: int, page: int) -> None:
        """Somebody waits for this page: it goes next, with what follows it closely."""
        process = self._processes.get(ns_pid)
        if process is None:
            return
        at = int(np.searchsorted(process.pages, np.uint64(page)))
        if at < len(process.pages) and int(process.pages[at]) == page:
            self._send(channel, ns_pid, process, at, AROUND_PAGES)

    def all_again(self) -> None:
        """The link was cut: nobody knows what of it arrived."""
        with self._lock:
            for process in self._processes.values():
                process.sent[:] = False
                process.at = 0

    def _send(self, channel: PageChannel, ns_pid: int, process: _Process, first: int, limit: int) -> None:
        with self._lock:
            pages = process.take(first, limit)
            if len(pages):
                ranges = ranges_of(pages)
                contents = _read(process.pid, ranges, keep_shared=len(self._processes) > 1)
                channel.send_pages(ns_pid, self._encoder.plain(ranges, contents))


def _read(pid: int, ranges: Ranges, *, keep_shared: bool) -> memoryview:
    """A page that is not there any more reads as zeros, which is what the program would find."""
    buffer = bytearray(total_bytes(ranges))
    read_pages_into(pid, ranges, buffer, keep_shared=keep_shared)
    return memoryview(buffer)


def unpack(behind: dict[int, bytes]) -> dict[int, Ranges]:
    """What `Backlog.ranges` packed. Raises ValueError for nonsense."""
    return {ns_pid: np.frombuffer(raw, np.uint64).reshape(-1, 2).copy() for ns_pid, raw in behind.items()}


__all__ = ["PAGE_BYTES", "Backlog", "unpack"]
