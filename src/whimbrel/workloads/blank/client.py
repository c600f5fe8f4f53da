"""The user of the blank container: numbered lines on one connection, each of which must come back as it was sent."""

from __future__ import annotations

import socket

from whimbrel.client.contract import Place, Talk, User
from whimbrel.client.loops import read_line

LINE_BYTES = 64


class Echoing(Talk):
    def ask(self, conn: socket.socket, number: int) -> int:
        line = b"%d " % number
        line = line.ljust(LINE_BYTES - 1, b"w")
        conn.sendall(line + b"\n")
        answer, when_ns = read_line(conn)
        if answer != line:
            raise ValueError(f"{line[:20]!r}… came back as {answer[:20]!r}…")
        return when_ns


class BlankUser(User):
    def talk(self) -> Talk:
        return Echoing()


def user(place: Place) -> User:
    return BlankUser(place)
