"""The parts of a restore, one after the other, and how long each took."""

from __future__ import annotations

import time


class Laps:
    """How long each part of the restore took, for the record of the migration."""

    def __init__(self) -> None:
        self.taken_ms: list[tuple[str, float]] = []
        self._last_s = time.monotonic()

    def lap(self, name: str) -> None:
        now_s = time.monotonic()
        self.taken_ms.append((name, (now_s - self._last_s) * 1e3))
        self._last_s = now_s
