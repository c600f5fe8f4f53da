"""Turns for what may be slow: few at once for one, and those that were slow the last time share a lane of their own, so
that however many of them there are, those that answer do not wait for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

AT_ONCE = 20
AT_ONCE_TO_ONE = 4
AT_ONCE_TO_SLOW = 4
"""To all together that were slow the last time."""
SLOW_S = 1.0
MOST_SLOW = 1000
"""So many are remembered while nothing waits for them."""


@dataclass
class _One:
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE_TO_ONE))
    users: int = 0
    slow: bool = False


class Lanes:
    """All is called in the event loop."""

    def __init__(self) -> None:
        self.known: dict[str, _One] = {}
        self.quick, self.slow = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE_TO_SLOW)

    @asynccontextmanager
    async def turn(self, name: str, seconds: float) -> AsyncIterator[None]:
        """Whatever is done inside has `seconds` for it. Raises TimeoutError."""
        one = self.known.setdefault(name, _One())
        one.users += 1
        try:
            async with one.turn, self.slow if one.slow else self.quick:
                began_s = time.monotonic()
                try:
                    async with asyncio.timeout(seconds):
                        yield
                    one.slow = time.monotonic() - began_s > SLOW_S
                except TimeoutError:
                    one.slow = True
                    raise
        finally:
            one.users -= 1
            if not one.users and (not one.slow or len(self.known) > MOST_SLOW):
                del self.known[name]
