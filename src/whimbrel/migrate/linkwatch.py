"""What the link of a page channel carries, read from the kernel's own figures of the connection while pages cross."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from whimbrel.plan.codec_choice import Link

# tcpi_bytes_acked of struct tcp_info, linux/tcp.h (Linux 4.2). Its busy time would be worth more than ours, but is
# counted in jiffies.
_ACKED_AT, _INFO_BYTES = 120, 128
_FIRST_LOOK_S, _LOOK_S = 0.01, 0.02
_FIRST_LOOK_BYTES, _LOOK_BYTES = 4 << 20, 16 << 20


class LinkWatch:
    """Over stretches of some 20 ms: how much the other side acknowledged, and how long the sender waited for the link.

    A connection that is no TCP is never known.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._acked_before = 0
        self._begun_s = 0.0
        self._waited_s = 0.0
        self._packed = False
        self.link = Link()

    def limit(self, bytes_per_s: float) -> None:
        self.link = replace(self.link, limit_bytes_per_s=bytes_per_s)

    def begin(self) -> None:
        """Sending begins; the pause before it counts for nothing."""
        self._acked_before = self._acked()
        self._begun_s = time.monotonic()
        self._waited_s = 0.0

    @contextmanager
    def sending(self, *, packed: bool) -> Iterator[None]:
        """Around handing one batch to the connection. A look is at packed or at raw batches, never at both."""
        if packed != self._packed:
            self._packed = packed
            self.begin()
        start_s, worked_s = time.monotonic(), time.thread_time()
        yield
        now_s = time.monotonic()
        # what is left is waiting: copying the bytes into the kernel is work
        self._waited_s += now_s - start_s - (time.thread_time() - worked_s)
        self._look(now_s - self._begun_s)

    def _look(self, took_s: float) -> None:
        acked = self._acked() - self._acked_before
        known = self.link.looks > 0
        long_enough = took_s >= (_LOOK_S if known else _FIRST_LOOK_S)
        if long_enough or acked >= (_LOOK_BYTES if known else _FIRST_LOOK_BYTES):
            if acked > 0 and took_s > 0:
                self.link = self.link.after(acked, took_s, self._waited_s / took_s)
            self.begin()

    def _acked(self) -> int:
        """Bytes that the other side acknowledged since the connection was made."""
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        except OSError:
            return 0
        return int.from_bytes(info[_ACKED_AT:_INFO_BYTES], "little")
