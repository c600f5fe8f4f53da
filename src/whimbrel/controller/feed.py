"""News of one migration for any number of listeners, also ones that come late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from whimbrel.controller.views import MigrationEvent
from whimbrel.model.migration import MigrationRecord, Progress

ALIVE_EVERY_S = 5.0
QUEUE_EVENTS = 1000


class Feed:
    """`publish` and `finish` never wait: a listener that is too slow misses progress, never the record."""

    def __init__(self, record: MigrationRecord, *, over: bool = False) -> None:
        self.record = record
        self._over = over
        self._last: Progress | None = None
        self._listeners: set[asyncio.Queue[MigrationEvent | None]] = set()

    def publish(self, progress: Progress) -> None:
        self._last = progress
        for queue in self._listeners:
            if queue.qsize() < QUEUE_EVENTS:
                queue.put_nowait(MigrationEvent(progress=progress))

    def finish(self, record: MigrationRecord) -> None:
        self.record = record
        self._over = True
        for queue in self._listeners:
            queue.put_nowait(MigrationEvent(record=record))

    def hang_up(self) -> None:
        """End every stream without a record: the controller stops."""
        for queue in self._listeners:
            queue.put_nowait(None)

    async def follow(self) -> AsyncIterator[MigrationEvent]:
        """The last news, then all that comes, last the record; an empty event now and then shows that we
        live."""
        queue: asyncio.Queue[MigrationEvent | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            if self._over:
                yield MigrationEvent(record=self.record)
                return
            if self._last is not None:
                yield MigrationEvent(progress=self._last)
            while True:
                try:
                    async with asyncio.timeout(ALIVE_EVERY_S):
                        event = await queue.get()
                except TimeoutError:
                    event = MigrationEvent()
                if event is None:
                    return
                yield event
                if event.record is not None:
                    return
        finally:
            self._listeners.discard(queue)
