"""One change of a thing after the other, so that what is kept of it and what is known of it are the same."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Locks:
    """By the thing's id, for as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock
