"""What is wrong is told when it begins, not each time it is met."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import structlog

log = structlog.get_logger()
MOST = 10_000


class Complaints:
    """`tell` logs a text under a key once, until `over` says that it has passed; another text is told anew."""

    def __init__(self, on_tell: Callable[[str, dict[str, Any]], None] = lambda text, facts: None) -> None:
        self._told: dict[Hashable, str] = {}
        self._on_tell = on_tell

    def tell(self, key: Hashable, text: str, **facts: Any) -> bool:
        """Whether it was new."""
        if self._told.get(key) == text:
            return False
        if len(self._told) >= MOST:
            self._told.clear()
        self._told[key] = text
        log.warning(text, **facts)
        self._on_tell(text, facts)
        return True

    def over(self, key: Hashable) -> None:
        self._told.pop(key, None)
