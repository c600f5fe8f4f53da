"""The user of *Simple*: one task at a time; the session's own counter must go up by one with each."""

from __future__ import annotations

import os
import socket

from whimbrel.client.contract import Place, Talk, User
from whimbrel.client.loops import read_line
from whimbrel.client.outage import CounterCheck


class Offloading(Talk):
    def __init__(self, session: bytes) -> None:
        self.task = b"task %s\n" % session
        self.counter = CounterCheck()

    def ask(self, conn: socket.socket, number: int) -> int:
        conn.sendall(self.task)
        answer, when_ns = read_line(conn)
        mine, total = (int(word) for word in answer.split())
        if not self.counter.accepts(mine, total) or total < mine:
            raise ValueError(f"the counters say {mine} tasks of {total}")
        return when_ns

    def broken(self) -> None:
        self.counter.broken()


class SimpleUser(User):
    def talk(self) -> Talk:
        return Offloading(os.urandom(4).hex().encode())


def user(place: Place) -> User:
    return SimpleUser(place)
