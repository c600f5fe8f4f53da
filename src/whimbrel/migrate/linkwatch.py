"""What the link of a page channel carries, read from the kernel's own figures of the connection while pages cross."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from whimbrel.plan.codec_choice import Link

# tcpi_bytes_acked and tcpi_notsent_bytes of struct tcp_info, linux/tcp.h (Linux 4.6). Its busy time would be worth more
# than ours, but is counted in jiffies.
_ACKED = struct.Struct("<120xQ16xI")
_PROBE_BYTES, _PROBE_S, _PROBE_STEP_S = 1 << 17, 0.01, 0.0002
_LOOK_S = 0.02
_LOOK_BYTES = 16 << 20
_BACKLOG_BYTES = 1 << 17


class LinkWatch:
    """Over stretches of some 20 ms: how much the other side acknowledged, and whether everything waited for the link.

    The first batch is watched until it has arrived, for 10 ms at most, because a connection takes megabytes before it
    lets anybody wait. A connection that is no TCP is never known.
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
        self._acked_before, _ = self._figures()
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
        if self.link.looks == 0:
            self._probe()
            return
        acked, backlog = self._figures()
        if now_s - self._begun_s >= _LOOK_S or acked - self._acked_before >= _LOOK_BYTES:
            self._look(acked, waited=backlog >= _BACKLOG_BYTES)

    def _probe(self) -> None:
        """Wait until all has arrived; the sender did nothing but wait for the link."""
        size = unacked(self._sock) + self._figures()[0] - self._acked_before
        if size < _PROBE_BYTES:
            return
        while unacked(self._sock) and time.monotonic() - self._begun_s < _PROBE_S:
            time.sleep(_PROBE_STEP_S)
        self._look(self._figures()[0], waited=time.monotonic() - self._begun_s > 2 * _PROBE_STEP_S)

    def _look(self, acked: int, *, waited: bool) -> None:
        took_s = time.monotonic() - self._begun_s
        if acked > self._acked_before:
            waiting = 1.0 if waited else self._waited_s / took_s
            self.link = self.link.after(acked - self._acked_before, took_s, waiting)
        self.begin()

    def _figures(self) -> tuple[int, int]:
        """(bytes that the other side acknowledged since the connection was made, bytes not even sent yet)"""
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size)
            return _ACKED.unpack(info)
        except (OSError, struct.error):
            return 0, 0


def unacked(sock: socket.socket) -> int:
    """Bytes handed to a connection that the other side has not acknowledged."""
    try:
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), "little")
    except OSError:
        return 0
