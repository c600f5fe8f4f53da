"""How `--bandwidth` is kept to, whatever the bytes leave by: whoever sends waits until its turn has come."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

PACED_BYTES = 1 << 16
_BURST_S = 0.01


class Pace:
    """So many bits per second; 0 is as fast as it goes. For one sender at a time."""

    def __init__(self, bandwidth_bps: float = 0.0) -> None:
        self._bps = bandwidth_bps
        self._taken_until = 0.0
        self._stopped = threading.Event()

    @property
    def bytes_per_s(self) -> float:
        """The limit; 0 is none."""
        return self._bps / 8

    def limit(self, bandwidth_bps: float) -> None:
        """From now on another one."""
        self._bps = bandwidth_bps
        self._taken_until = time.monotonic()

    def pieces(self, part: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """`part` in pieces, each when it may leave. Raises OSError when it is interrupted."""
        if self._bps <= 0:
            yield part
            return
        view = memoryview(part)
        for at in range(0, len(view), PACED_BYTES):
            piece = view[at : at + PACED_BYTES]
            self._wait(len(piece))
            yield piece

    def interrupt(self) -> None:
        """From another thread: who waits here waits no longer, and gets an OSError."""
        self._stopped.set()

    def go_on(self) -> None:
        """Forget an interrupt."""
        self._stopped.clear()

    def _wait(self, size_bytes: int) -> None:
        now = time.monotonic()
        self._taken_until = max(self._taken_until, now - _BURST_S) + size_bytes * 8 / self._bps
        if self._taken_until > now and self._stopped.wait(self._taken_until - now):
            raise OSError(errno.ESHUTDOWN, "it was shut")
