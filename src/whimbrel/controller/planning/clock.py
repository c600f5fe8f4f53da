"""Wall clocks that are set while something waits for a time on them."""

from __future__ import annotations

import asyncio
import time

JUMP_S = 1.0
"""Less is how clocks are kept right."""


class Timeline:
    """Times of one decision on the wall clock as it was when the decision began: a clock that is set meanwhile moves
    none of them."""

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now_unix_s(self) -> float:
        return time.monotonic() + self._offset_s

    def left_s(self, unix_s: float) -> float:
        """Until then; below 0 afterwards."""
        return unix_s - self.now_unix_s()

    def set_by_s(self) -> float:
        """By how much the wall clock was put forward since (back: below 0)."""
        return time.time() - self.now_unix_s()

    async def until(self, unix_s: float) -> None:
        while (left_s := self.left_s(unix_s)) > 0:
            await asyncio.sleep(left_s)


class JumpWatch:
    """Holds the wall clock against the monotonic one."""

    def __init__(self) -> None:
        self._line = Timeline()

    def jumped_s(self) -> float:
        """By how much the wall clock was set since this was asked last; 0 when it was not."""
        set_by_s, self._line = self._line.set_by_s(), Timeline()
        return set_by_s if abs(set_by_s) >= JUMP_S else 0.0
