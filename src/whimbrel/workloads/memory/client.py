"""The user of the service with memory: a counter by TCP, an echo by UDP, and every byte of the memory checked."""

from __future__ import annotations

import socket

from whimbrel.client.contract import Figures, Place, Talk, User
from whimbrel.client.loops import read_line
from whimbrel.client.outage import CounterCheck
from whimbrel.workloads.memory.service import expected_digest


class Counting(Talk):
    """``count`` requests: the service's own counters must go up as they should."""

    def __init__(self) -> None:
        self.counter = CounterCheck()

    def ask(self, conn: socket.socket, number: int) -> int:
        conn.sendall(b"count\n")
        answer, when_ns = read_line(conn)
        requests, writes = (int(word) for word in answer.split())
        if not self.counter.accepts(requests, writes):
            raise ValueError(f"the counters say {requests} requests and {writes} writes")
        return when_ns

    def broken(self) -> None:
        self.counter.broken()


class MemoryUser(User):
    udp = True

    def talk(self) -> Talk:
        return Counting()

    def check(self) -> Figures:
        """Every byte of the service's memory against what its number of writes says it must be."""
        settings = self.place.settings
        with self.place.connect() as conn:
            conn.settimeout(60.0)
            conn.sendall(b"digest\n")
            answer, _ = read_line(conn)
        writes, digest = (int(word) for word in answer.split())
        expected = expected_digest(
            writes,
            int(settings.get("MEMORY_MB", "200")),
            settings.get("CONTENTS", "words"),
            float(settings.get("ZERO_SHARE", "0")),
        )
        return {"ok": digest == expected, "writes": writes}


def user(place: Place) -> User:
    return MemoryUser(place)
