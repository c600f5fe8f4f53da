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
from typing import NamedTuple

from whimbrel.memory.batches import BATCH_BYTES
from whimbrel.plan.codec_choice import PEAK_BYTES, Link

# tcpi_rtt, tcpi_bytes_acked, tcpi_notsent_bytes and tcpi_min_rtt of struct tcp_info, linux/tcp.h (Linux 4.6). Its busy
# time would be worth more than ours, but is counted in jiffies.
_INFO = struct.Struct("<68xI48xQ16xII")
_PROBE_BYTES, _PROBE_S, _PROBE_STEP_S = 1 << 18, 0.01, 0.0002
_PROBE_GROWTH, _PROBE_LEAST_SHARE = 4, 0.25
_PROBE_CERTAIN_S = 0.005  # whoever waits wakes up to 1.5 ms late: what took less is lost in that
_LOOK_S = 0.02
_LOOK_BYTES = 16 << 20
_BACKLOG_BYTES = 1 << 17


class _Figures(NamedTuple):
    """Bytes that the other side acknowledged since the connection was made, bytes not even sent yet; the round trip,
    smoothed, and the shortest that was seen."""

    acked_bytes: int
    unsent_bytes: int
    round_trip_s: float
    least_round_trip_s: float


class LinkWatch:
    """Over stretches of some 20 ms, and a round trip at least, because acknowledgements come in bursts: how much the
    other side acknowledged, and whether everything waited for the link.

    The first batches are watched until each has arrived, for 10 ms at most, because a connection takes megabytes before
    it lets anybody wait. They grow until one took long enough, or was large enough, to tell. A connection that is no
    TCP is never known.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._acked_before = 0
        self._begun_s = 0.0
        self._waited_s = self._held_back_s = 0.0
        self._packed = False
        self._probe_bytes = _PROBE_BYTES
        self.link = Link()

    @property
    def probe_bytes(self) -> int:
        """How large the next batch should be for the link to show what it carries; 0 when it has."""
        return self._probe_bytes

    def limit(self, bytes_per_s: float) -> None:
        self.link = replace(self.link, limit_bytes_per_s=bytes_per_s)

    def begin(self) -> None:
        """Sending begins; the pause before it counts for nothing."""
        self._acked_before = self._figures().acked_bytes
        self._begun_s = time.monotonic()
        self._waited_s = self._held_back_s = 0.0

    def hold_back(self, seconds: float) -> None:
        """Wait, because the link has enough to do."""
        time.sleep(seconds)
        self._held_back_s += seconds

    @contextmanager
    def sending(self, *, packed: bool) -> Iterator[None]:
        """Around handing one batch to the connection. A look is at packed or at raw batches, never at both."""
        if packed != self._packed or self._probe_bytes:
            self._packed = packed
            self.begin()
        start_s, worked_s = time.monotonic(), time.thread_time()
        yield
        now_s = time.monotonic()
        # what is left is waiting: copying the bytes into the kernel is work
        self._waited_s += now_s - start_s - (time.thread_time() - worked_s)
        if self._probe_bytes:
            self._probe()
            return
        seen = self._figures()
        long = now_s - self._begun_s >= max(_LOOK_S, seen.round_trip_s)
        if long or seen.acked_bytes - self._acked_before >= _LOOK_BYTES:
            self._look(seen.acked_bytes, waited=seen.unsent_bytes >= _BACKLOG_BYTES)

    def owed_s(self) -> float:
        """How long the link is still busy with what it was given, by whomever: what is not acknowledged, less what is
        on its way or whose acknowledgement is."""
        rate = self.link.bytes_per_s
        return unacked(self._sock) / rate - self._figures().least_round_trip_s if rate else 0.0

    def _probe(self) -> None:
        """Wait until all has arrived; the sender did nothing but wait for the link."""
        size = unacked(self._sock) + self._figures().acked_bytes - self._acked_before
        told = self._probe_bytes >= BATCH_BYTES
        if size >= _PROBE_LEAST_SHARE * self._probe_bytes:  # else zero pages, or packed ones
            while unacked(self._sock) and time.monotonic() - self._begun_s < _PROBE_S:
                time.sleep(_PROBE_STEP_S)
            shown = size >= PEAK_BYTES or time.monotonic() - self._begun_s >= _PROBE_CERTAIN_S
            if not self._look(self._figures().acked_bytes, waited=shown):
                return  # the way is long: nothing of it has been acknowledged, and the next one is no larger
            told = told or shown
        self._probe_bytes = 0 if told else min(self._probe_bytes * _PROBE_GROWTH, BATCH_BYTES)

    def _look(self, acked: int, *, waited: bool) -> bool:
        """Returns whether there was anything to see."""
        took_s = time.monotonic() - self._begun_s
        if seen := acked > self._acked_before:
            held_back = self._held_back_s > 0  # who holds back has given the link enough to do
            waiting = 1.0 if waited or held_back else self._waited_s / took_s
            self.link = self.link.after(acked - self._acked_before, took_s, waiting, held_back=held_back)
        self.begin()
        return seen

    def _figures(self) -> _Figures:
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            round_trip_us, acked_bytes, unsent_bytes, least_us = _INFO.unpack(info)
            return _Figures(acked_bytes, unsent_bytes, round_trip_us / 1e6, least_us / 1e6)
        except (OSError, struct.error):
            return _Figures(0, 0, 0.0, 0.0)


def unacked(sock: socket.socket) -> int:
    """Bytes handed to a connection that the other side has not acknowledged."""
    try:
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), "little")
    except OSError:
        return 0
