"""The network's orders to one user: kept until they are due."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from whimbrel.model.radio import HandoverOrder

MOST_WAITING = 100


@dataclass
class OrderBook:
    """Orders of one user; `add` from any thread. One that was carried out is not carried out again, however often it is
    heard: the user may have gone on to another base station since."""

    user: str
    _waiting: list[HandoverOrder] = field(default_factory=list)
    _done: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_WAITING))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, order: HandoverOrder) -> str:
        """The reason why it is not taken; empty when it is. One with the id of an order that waits replaces it."""
        if order.user != self.user:
            return f"an order for {order.user!r} came to {self.user}"
        if not abs(order.at_unix_s) < 1e11:  # also false for NaN
            return f"an order for the time {order.at_unix_s} was not taken"
        with self._lock:
            if order.id and order.id in self._done:
                return ""
            self._waiting = [other for other in self._waiting if not order.id or other.id != order.id]
            if len(self._waiting) >= MOST_WAITING:
                return f"{MOST_WAITING} orders wait already: one was not taken"
            self._waiting.append(order)
        return ""

    def due(self, unix_s: float) -> HandoverOrder | None:
        """The order to carry out now, taken out of the book; the latest of several, since it knows most."""
        with self._lock:
            ready = [order for order in self._waiting if order.at_unix_s <= unix_s]
            if not ready:
                return None
            self._waiting = [order for order in self._waiting if order.at_unix_s > unix_s]
            self._done.extend(order.id for order in ready if order.id)
        return max(ready, key=lambda order: order.at_unix_s)

    def next_unix_s(self) -> float | None:
        """When the next one is due."""
        with self._lock:
            return min((order.at_unix_s for order in self._waiting), default=None)


def read_lines(fd: int, on_order: Callable[[HandoverOrder], None], on_trouble: Callable[[str], None]) -> None:
    """Orders as JSON lines from a descriptor, until its end (blocks: for a thread of its own)."""
    pending = b""
    while True:
        select.select([fd], [], [])
        data = os.read(fd, 4096)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in filter(bytes.strip, lines):
            try:
                on_order(msgspec.json.decode(line, type=HandoverOrder))
            except msgspec.MsgspecError as error:
                on_trouble(f'{line[:80]!r} is no order ({error}): write {{"event": "order", "user": …, "target": …}}')
