"""Whether the receiving process still lives, or hangs: it touches a file of its work folder once a second.

A file, so that the next agent can tell too. What hangs is killed by the agent there (`agent.incoming`). Before the
commit the migration is rolled back; after it the service is lost there and runs on at the source, unless all of its
pages are in place.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

NAME = "pulse"
BEAT_S = 1.0
MOST_MISSED = 8


class Beat:
    """The receiving process's side."""

    def __init__(self, work_dir: Path) -> None:
        self._file = work_dir / NAME

    def start(self) -> None:
        self._file.touch()
        threading.Thread(target=self._go_on, name="pulse", daemon=True).start()

    def _go_on(self) -> None:
        while True:
            time.sleep(BEAT_S)
            try:
                os.utime(self._file)
            except OSError:
                return  # the folder is gone: it is all over


class Listener:
    """The agent's side. Call `hangs` every `BEAT_S`. It counts its own calls, not the clock, so that an agent that was
    held up itself does not take its own pause for the other's."""

    def __init__(self, work_dir: Path) -> None:
        self._file = work_dir / NAME
        self._last_ns = 0
        self._missed = 0

    def hangs(self) -> bool:
        """True when too many beats were missed. One that has not begun to beat does not hang."""
        try:
            now_ns = self._file.stat().st_mtime_ns
        except OSError:
            return False
        self._missed = self._missed + 1 if now_ns == self._last_ns else 0
        self._last_ns = now_ns
        return self._missed >= MOST_MISSED
