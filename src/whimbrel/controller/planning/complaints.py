"""What is wrong is told when it begins, not each time it is met."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

import structlog

log = structlog.get_logger()
MOST = 10_000
QUIET_AFTER_S = 30.0
"""What comes and goes faster is one trouble: a user at the rim of a cell, a link that flaps."""


class Complaints:
    """`tell` logs a text under a key once, until `over` says that it has passed; another text is told anew. One that is
    back within `QUIET_AFTER_S` has not passed."""

    def __init__(
        self,
        on_tell: Callable[[str, dict[str, Any]], None] = lambda text, facts: None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._standing: dict[Hashable, str] = {}
        self._passed_s: dict[tuple[Hashable, str], float] = {}
        self._on_tell, self._clock_s = on_tell, clock_s

    def tell(self, key: Hashable, text: str, **facts: Any) -> bool:
        """Whether it was new."""
        if self._standing.get(key) == text:
            return False
        self.over(key)
        if len(self._standing) >= MOST:
            self._standing.clear()
        self._standing[key] = text
        passed_s = self._passed_s.pop((key, text), None)
        if passed_s is not None and self._clock_s() - passed_s < QUIET_AFTER_S:
            return False
        log.warning(text, **facts)
        self._on_tell(text, facts)
        return True

    def over(self, key: Hashable) -> None:
        text = self._standing.pop(key, None)
        if text is not None:
            if len(self._passed_s) >= MOST:
                self._passed_s.clear()
            self._passed_s[key, text] = self._clock_s()
