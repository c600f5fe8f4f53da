"""What waits for a subscriber: bounded in number and in bytes, and in bytes also over all subscribers, so that many who
are slow cannot fill the memory. What is too much gives up its oldest."""

from __future__ import annotations

import asyncio
from collections import deque

MOST = 100
MOST_BYTES = 1 << 20
MOST_BYTES_OF_ALL = 32 << 20


class Budget:
    """Of all queues together: the fullest makes room for what is new, so nobody is left without because others wait."""

    def __init__(self, most_bytes: int = MOST_BYTES_OF_ALL) -> None:
        self._left_bytes = most_bytes
        self._queues: set[Waiting] = set()

    def take(self, queue: Waiting, size_bytes: int) -> bool:
        """Whether nothing of anybody's had to be dropped for it."""
        dropped = False
        while self._left_bytes < size_bytes and self._queues:
            max(self._queues, key=lambda one: one.bytes).drop_half()
            dropped = True
        self._left_bytes -= size_bytes
        self._queues.add(queue)
        return not dropped

    def give(self, queue: Waiting, size_bytes: int) -> None:
        self._left_bytes += size_bytes
        if not len(queue):
            self._queues.discard(queue)


class Waiting:
    """Messages, each with where it goes to. All is called in the event loop."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._items: deque[tuple[str, bytes]] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, url: str, body: bytes) -> bool:
        """Whether all that waits still does."""
        size = _size_of(url, body)
        kept = True
        while self._items and (len(self._items) >= MOST or self.bytes + size > MOST_BYTES):
            self.take()
            kept = False
        kept = self._budget.take(self, size) and kept
        self.bytes += size
        self._items.append((url, body))
        self._news.set()
        return kept

    async def get(self) -> tuple[str, bytes] | None:
        """The oldest; None when it was ended, and nothing waits any more."""
        while not self._items:
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        return self.take()

    def take(self) -> tuple[str, bytes]:
        item = self._items.popleft()
        size = _size_of(*item)
        self.bytes -= size
        self._budget.give(self, size)
        return item

    def drop_half(self) -> None:
        """The older one."""
        for _ in range((len(self._items) + 1) // 2):
            self.take()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def clear(self) -> None:
        while self._items:
            self.take()


def _size_of(url: str, body: bytes) -> int:
    return len(url) + len(body)
