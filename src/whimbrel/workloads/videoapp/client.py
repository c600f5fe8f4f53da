"""The viewer: logs in once, and tells what it watched, one post at a time. Its session's count goes up by exactly one
with each post and its watched time by what was told; a second connection fetches the film meanwhile, as a player does.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from typing import Any

from whimbrel.client.contract import Figures, Place, Side, Talk, User
from whimbrel.client.loops import receive
from whimbrel.client.outage import CounterCheck

STEP_S = 0.001
STALL_S = 1.0
RETRY_S = 0.05
RANGE_BYTES = 16 << 20


def request(method: str, path: str, host: str, cookie: str = "", body: bytes = b"", more: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"Cookie: {cookie}"] if cookie else []
    return ("\r\n".join(lines) + f"\r\n{more}\r\n").encode() + body


def head_of(conn: socket.socket) -> tuple[str, bytes, int]:
    """The head of an answer, what came of the body with it, and when. OSError: broken."""
    data, when_ns = b"", 0
    while b"\r\n\r\n" not in data:
        part, when_ns = receive(conn)
        if not part:
            raise ConnectionResetError("closed by the service")
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), body, when_ns


def header(head: str, name: str) -> str:
    for line in head.split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.lower() == name:
            return value.strip()
    return ""


def exchange(conn: socket.socket, question: bytes) -> tuple[str, bytes, int]:
    """One request, its whole answer, and when its last part came."""
    conn.sendall(question)
    head, body, when_ns = head_of(conn)
    length = int(header(head, "content-length") or 0)
    while len(body) < length:
        part, when_ns = receive(conn)
        if not part:
            raise ConnectionResetError("closed by the service")
        body += part
    return head, body, when_ns


def log_in(place: Place) -> str:
    """The session's cookie. Raises OSError when there is none."""
    user, _, password = place.settings.get("USERS", "viewer:whimbrel").split(",")[0].partition(":")
    with place.connect() as conn:
        head, _, _ = exchange(
            conn, request("POST", "/login", place.host, body=f"user={user}&password={password}".encode())
        )
    cookie = header(head, "set-cookie").partition(";")[0]
    if "303" not in head.split("\r\n")[0] or not cookie:
        raise ConnectionRefusedError(f"the log-in was answered with {head.splitlines()[0]!r}")
    return cookie


class Watching(Talk):
    """Tells what was watched, and checks what the session has of it."""

    rate = 500.0

    def __init__(self, place: Place, cookie: str) -> None:
        self.host, self.cookie = place.host, cookie
        self.counter = CounterCheck()
        self.told_s = 0.0

    def ask(self, conn: socket.socket, number: int) -> int:
        body = json.dumps({"seconds": STEP_S, "position_s": number * STEP_S}).encode()
        head, text, when_ns = exchange(conn, request("POST", "/api/watched", self.host, self.cookie, body))
        if "200" not in head.split("\r\n")[0]:
            raise ValueError(f"the session is gone: {head.splitlines()[0]!r}")
        told: dict[str, Any] = json.loads(text)
        if not self.counter.accepts(told["posts"], told["all_posts"]):
            raise ValueError(f"the session counts {told['posts']} posts of {told['all_posts']}")
        if abs(told["watched_s"] - told["posts"] * STEP_S) > STEP_S:
            raise ValueError(f"{told['posts']} posts of {STEP_S} s, and {told['watched_s']} s watched")
        return when_ns

    def broken(self) -> None:
        self.counter.broken()


class Film(Side):
    """The film on a connection of its own, as fast as the service sends it. Nothing for a second is a stall."""

    name = "film"

    def __init__(self, place: Place, cookie: str) -> None:
        self.place, self.cookie = place, cookie
        self.conn: socket.socket | None = None
        self.missing = 0
        self.received: list[tuple[int, int]] = []  # (ns, bytes)
        self.gaps: list[tuple[int, float]] = []  # (ns, seconds)
        self.resets_ns: list[int] = []
        self.last_ns = 0

    def step(self) -> None:
        try:
            if self.conn is None:
                self.conn = self.place.connect()
                self.conn.settimeout(self.place.timeout_s)
                self.missing = 0
            if self.missing <= 0:
                more = f"Range: bytes=0-{RANGE_BYTES}\r\n"
                self.conn.sendall(request("GET", "/film.mp4", self.place.host, self.cookie, more=more))
                head, body, when_ns = head_of(self.conn)
                if "206" not in head.split("\r\n")[0]:
                    raise ConnectionResetError(f"the film was answered with {head.splitlines()[0]!r}")
                self.missing = int(header(head, "content-length")) - len(body)
                self.note(when_ns, len(body))
                return
            part, when_ns = receive(self.conn)
            if not part:
                raise ConnectionResetError("closed by the service")
            self.missing -= len(part)
            self.note(when_ns, len(part))
        except OSError:
            if self.conn is not None:
                self.resets_ns.append(time.monotonic_ns())
                self.conn.close()
                self.conn = None
            time.sleep(RETRY_S)

    def note(self, when_ns: int, size: int) -> None:
        if self.last_ns:
            self.gaps.append((when_ns, (when_ns - self.last_ns) / 1e9))
        self.last_ns = when_ns
        self.received.append((when_ns, size))

    def figures(self, from_ns: int, to_ns: int) -> Figures:
        gaps = [gap for when, gap in self.gaps if from_ns <= when < to_ns]
        found = {
            "ok": True,
            "resets": sum(from_ns <= when < to_ns for when in self.resets_ns),
            "stalls": sum(gap > STALL_S for gap in gaps),
            "film_bytes": sum(size for when, size in self.received if from_ns <= when < to_ns),
            "longest_gap_ms": max(gaps, default=0.0) * 1000,
        }
        self.received, self.gaps = [], []
        return found


class Viewer(User):
    def prepare(self) -> None:
        self.cookie = log_in(self.place)

    def talk(self) -> Talk:
        return Watching(self.place, self.cookie)

    def sides(self) -> Sequence[Side]:
        return (Film(self.place, log_in(self.place)),)


def user(place: Place) -> User:
    return Viewer(place)
