"""The user of Redis: a counter one request at a time, and thousands of pipelined writes a second, each with a value of
its own. Every write that was acknowledged is read back: what is not there, or is not what was written, is lost.

Speaks the protocol itself (RESP, the requests as arrays of bulk strings): two cores are shared with everything that
is measured, and all that is needed are requests in a row and answers counted.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from whimbrel.client.contract import Figures, Place, Side, Talk, User
from whimbrel.client.loops import read_line
from whimbrel.client.outage import CounterCheck

CONNECTIONS = 4
TICK_S = 0.005
VALUE_BYTES = 64
READ_AT_ONCE = 500
PRELOAD_VALUE_BYTES = 4096
PRELOAD_AT_ONCE = 256
SAMPLED = 500  # of the preloaded values, after each window
RETRY_CONNECT_S = 0.02


def request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Answers:
    """Requests in a row on a blocking connection, and their answers in order. OSError: broken."""

    def __init__(self, conn: socket.socket) -> None:
        self._conn = conn
        self._file = conn.makefile("rb")

    def of(self, requests: Sequence[bytes]) -> Iterator[bytes | int | None]:
        """One answer for each: a value, a number, or None for what does not exist. ValueError: Redis refused."""
        self._conn.sendall(b"".join(requests))
        for _ in requests:
            yield self._one()

    def _one(self) -> bytes | int | None:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("closed by Redis")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise ValueError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._file.read(size + 2)[:-2]
        return rest


class Counting(Talk):
    """``INCR`` on a key of its own: each answer must be one more than the one before."""

    def __init__(self, run: bytes) -> None:
        self.incr = request(b"INCR", b"c:" + run)
        self.counter = CounterCheck()

    def ask(self, conn: socket.socket, number: int) -> int:
        conn.sendall(self.incr)
        answer, when_ns = read_line(conn)
        if not answer.startswith(b":") or not self.counter.accepts(int(answer[1:]), 0):
            raise ValueError(f"INCR answered {answer[:60]!r}")
        return when_ns

    def broken(self) -> None:
        self.counter.broken()


@dataclass
class Batch:
    """Writes sent at once: numbers from `first` on. `acked_ns` 0: not all acknowledged yet."""

    sent_ns: int
    first: int
    count: int
    acked: int = 0
    acked_ns: int = 0


@dataclass
class Line:
    """One of the writer's connections, and what was sent on it and not acknowledged yet."""

    conn: socket.socket | None = None
    sent: deque[Batch] = field(default_factory=deque)
    pending: bytes = b""
    unsent: bytes = b""


class Writer(Side):
    """About `rate` writes a second, each with a key and a value of its own, over several connections."""

    name = "writer"

    def __init__(self, place: Place, run: bytes, rate: float) -> None:
        self.place, self.run, self.rate = place, run, rate
        self.lines = [Line() for _ in range(CONNECTIONS)]
        self.batches: list[Batch] = []
        self.resets_ns: list[int] = []
        self.numbers = 0
        self.refused: dict[int, str] = {}
        self.due = 0.0
        self.turn = 0

    def key(self, number: int) -> bytes:
        return b"w:%s:%d" % (self.run, number)

    def value(self, number: int) -> bytes:
        return (b"%d:%s:" % (number, self.run)).ljust(VALUE_BYTES, b"v")

    def step(self) -> None:
        now = time.monotonic()
        if now >= self.due:
            behind_s = min(now - self.due + TICK_S, 5 * TICK_S) if self.due else TICK_S
            self.due = now + TICK_S
            self._write(round(self.rate * behind_s))
        else:
            self._read(self.due - now)

    def _write(self, count: int) -> None:
        self.turn = (self.turn + 1) % CONNECTIONS
        line = self.lines[self.turn]
        if line.conn is None and not self._connect(line):
            return
        batch = Batch(time.monotonic_ns(), self.numbers, count)
        numbers = range(self.numbers, self.numbers + count)
        self.numbers += count
        line.unsent += b"".join(request(b"SET", self.key(number), self.value(number)) for number in numbers)
        line.sent.append(batch)
        self.batches.append(batch)
        self._push(line)

    def _connect(self, line: Line) -> bool:
        try:
            line.conn = self.place.connect()
        except OSError:
            time.sleep(RETRY_CONNECT_S)
            return False
        line.conn.setblocking(False)
        return True

    def _push(self, line: Line) -> None:
        assert line.conn is not None
        try:
            line.unsent = line.unsent[line.conn.send(line.unsent) :]
        except BlockingIOError:
            pass  # the service stands still: goes on when there is room
        except OSError:
            self._broken(line)

    def _read(self, wait_s: float) -> None:
        waiting = [line for line in self.lines if line.unsent]
        joined = {line.conn: line for line in self.lines if line.conn is not None}
        if not joined:
            time.sleep(wait_s)
            return
        full = [line.conn for line in waiting if line.conn is not None]
        readable, writable, _ = select.select(list(joined), full, [], wait_s)
        for conn in readable:
            self._take(joined[conn])
        for conn in writable:
            if joined[conn].conn is not None:
                self._push(joined[conn])

    def _take(self, line: Line) -> None:
        assert line.conn is not None
        try:
            data = line.conn.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broken(line)
            return
        *answers, line.pending = (line.pending + data).split(b"\r\n")
        now_ns = time.monotonic_ns()
        for answer in answers:
            batch = line.sent[0]
            if answer != b"+OK":
                self.refused[batch.first + batch.acked] = answer.decode(errors="replace")
            batch.acked += 1
            if batch.acked == batch.count:
                line.sent.popleft().acked_ns = now_ns

    def _broken(self, line: Line) -> None:
        assert line.conn is not None
        self.resets_ns.append(time.monotonic_ns())
        line.conn.close()
        line.conn, line.pending, line.unsent = None, b"", b""
        line.sent.clear()

    def figures(self, from_ns: int, to_ns: int) -> Figures:
        """Reads back every write acknowledged since the last time, and removes them: Redis does not grow."""
        deadline = time.monotonic() + 10.0
        while any(line.sent for line in self.lines) and time.monotonic() < deadline:
            self._read(TICK_S)
        now_ns = time.monotonic_ns()
        window = [batch for batch in self.batches if from_ns <= batch.sent_ns < to_ns]
        waits_ns = [(batch.acked_ns or now_ns) - batch.sent_ns for batch in window]
        lost = self._lost()
        refused, self.refused = self.refused, {}
        waiting = {id(batch) for line in self.lines for batch in line.sent}
        self.batches = [batch for batch in self.batches if id(batch) in waiting]
        return {
            "ok": not lost and not refused,
            "requests": sum(batch.count for batch in window),
            "answered": sum(batch.acked for batch in window),
            "refused": len(refused),
            "lost": lost,
            "resets": sum(1 for when in self.resets_ns if from_ns <= when < now_ns),
            "worst_write_ms": max(waits_ns, default=0) / 1e6,
            "writes_per_s": sum(batch.acked for batch in window) / ((to_ns - from_ns) / 1e9),
            **({"refusal": next(iter(refused.values()))} if refused else {}),
        }

    def _lost(self) -> int:
        """How many of the acknowledged writes are not there, or not as they were written."""
        answered = (batch.first + index for batch in self.batches for index in range(batch.acked))
        numbers = [number for number in answered if number not in self.refused]
        lost = 0
        with self.place.connect() as conn:
            answers = Answers(conn)
            for start in range(0, len(numbers), READ_AT_ONCE):
                part = numbers[start : start + READ_AT_ONCE]
                found = answers.of([request(b"GET", self.key(number)) for number in part])
                lost += sum(value != self.value(number) for number, value in zip(part, found, strict=True))
                list(answers.of([request(b"UNLINK", *(self.key(number) for number in part))]))
        return lost


class RedisUser(User):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.run = os.urandom(4).hex().encode()
        self.preloaded = int(place.settings.get("PRELOAD_MB", "200")) * (1 << 20) // PRELOAD_VALUE_BYTES
        self.rate = float(place.settings.get("WRITES_PER_S", "5000"))

    def talk(self) -> Talk:
        return Counting(self.run)

    def sides(self) -> Sequence[Side]:
        return (Writer(self.place, self.run, self.rate),)

    def prepare(self) -> None:
        """Preload, unless an earlier client has."""
        with self.place.connect() as conn:
            answers = Answers(conn)
            if self.preloaded and list(answers.of([request(b"GET", b"p:%d" % (self.preloaded - 1))])) == [
                preload_value(self.preloaded - 1)
            ]:
                return
            for start in range(0, self.preloaded, PRELOAD_AT_ONCE):
                part = range(start, min(start + PRELOAD_AT_ONCE, self.preloaded))
                list(answers.of([request(b"SET", b"p:%d" % index, preload_value(index)) for index in part]))

    def check(self) -> Figures:
        """A sample of what was preloaded, spread over all of it."""
        indices = range(0, self.preloaded, max(1, self.preloaded // SAMPLED))
        with self.place.connect() as conn:
            found = Answers(conn).of([request(b"GET", b"p:%d" % index) for index in indices])
            wrong = sum(value != preload_value(index) for index, value in zip(indices, found, strict=True))
        return {"ok": wrong == 0, "lost": wrong, "sampled": len(indices)}


def preload_value(index: int) -> bytes:
    return hashlib.shake_128(b"%d" % index).digest(PRELOAD_VALUE_BYTES)


def user(place: Place) -> User:
    return RedisUser(place)
