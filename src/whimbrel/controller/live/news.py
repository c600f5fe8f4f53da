"""Server-sent events (WHATWG HTML, 9.2) for any number of listeners: each event is put into bytes once.

Nobody waits for a listener: one that is too slow to take what it is told is hung up on. It connects again, as browsers
do by themselves, and gets the whole picture anew, and of the log what it missed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from whimbrel.controller.live.views import LogEntry
from whimbrel.model.errors import WhimbrelError

ALIVE_EVERY_S = 5.0
RING = 1000
QUEUE_EVENTS = 500
MOST_LISTENERS = 200
RETRY_MS = 1000

log = structlog.get_logger()
_encode = msgspec.json.Encoder().encode


def event_bytes(number: int, event: str, data: Any) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, event.encode(), _encode(data))


class News:
    """`publish` and `log` never wait. Numbers grow, also from one process to the next: they begin at the time."""

    def __init__(self) -> None:
        self._number = int(time.time() * 1000)
        self._ring: deque[tuple[LogEntry, bytes]] = deque(maxlen=RING)
        self._listeners: set[asyncio.Queue[bytes | None]] = set()

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def publish(self, event: str, data: Any) -> None:
        if self._listeners:
            self._send(event_bytes(self._next(), event, data))

    def log(self, entry: LogEntry) -> None:
        entry = replace(entry, id=self._next())
        text = event_bytes(entry.id, "log", entry)
        self._ring.append((entry, text))
        self._send(text)

    def entries(self, limit: int, before: int | None = None) -> list[LogEntry]:
        """The newest first; `before`: of those older than this id."""
        found = []
        for entry, _ in reversed(self._ring):
            if before is None or entry.id < before:
                found.append(entry)
                if len(found) == limit:
                    break
        return found

    def hang_up(self) -> None:
        """End every stream: the controller stops."""
        for queue in self._listeners:
            _cut(queue)

    async def follow(self, first: Callable[[], Awaitable[Any]], last_id: int | None) -> AsyncIterator[bytes]:
        """`first` makes the picture that a listener begins with; `last_id`: the last event that it had before."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listeners.add(queue)  # before the picture is made: what happens meanwhile comes after it
        number = self._next()
        missed = [text for entry, text in self._ring if last_id is not None and entry.id > last_id]
        try:
            yield b"retry: %d\n\n" % RETRY_MS
            try:
                yield event_bytes(number, "region", await first())
            except WhimbrelError as error:
                log.warning("a listener gets no picture of the region, and is to ask again", error=str(error))
                return
            for text in missed:
                yield text
            while True:
                try:
                    async with asyncio.timeout(ALIVE_EVERY_S):
                        text_or_end = await queue.get()
                except TimeoutError:
                    text_or_end = event_bytes(self._next(), "alive", {})
                if text_or_end is None:
                    return
                yield text_or_end
        finally:
            self._listeners.discard(queue)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, text: bytes) -> None:
        for queue in self._listeners:
            if queue.qsize() < QUEUE_EVENTS:
                queue.put_nowait(text)
            else:
                _cut(queue)


def _cut(queue: asyncio.Queue[bytes | None]) -> None:
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)
