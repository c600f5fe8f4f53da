"""One question for all who ask it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Together(Generic[T]):
    """Who asks while the question is under way waits for the next one, and shares it with all who came meanwhile: no
    answer is older than its question, and however many ask, one question is under way and one waits."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        if self._next is None:
            self._next = asyncio.create_task(self._ask_after(self._running))
        return await asyncio.shield(self._next)  # one who leaves does not take the answer from the others

    async def _ask_after(self, before: asyncio.Task[T] | None) -> T:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._ask()
