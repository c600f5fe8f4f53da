"""The user of the video: a player that fetches ranges as it plays, and beside it small ranges one at a time, by which
the outage is measured. Every range is compared with the digests made with the video.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whimbrel.client.contract import Figures, Place, Side, Talk, User
from whimbrel.client.loops import receive

PATH = "/video.mp4"
SEGMENT_BLOCKS = 64
STRIDE = 7919  # a prime: the small ranges come from all over the file
RETRY_CONNECT_S = 0.05
LONGEST_STEP_S = 0.05


@dataclass(frozen=True)
class Video:
    """What the file must be: sizes, playing time, and a digest of each block."""

    size_bytes: int
    seconds: float
    block_bytes: int
    digest_bytes: int
    digests: bytes

    @classmethod
    def of(cls, place: Place) -> Video:
        about = json.loads(place.file("video.json").read_text())
        digests = place.file("blocks.bin").read_bytes()
        return cls(about["bytes"], about["seconds"], about["block_bytes"], about["digest_bytes"], digests)

    @property
    def blocks(self) -> int:
        return len(self.digests) // self.digest_bytes

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.seconds

    def span(self, block: int, count: int) -> tuple[int, int]:
        """First and last byte of `count` blocks from `block` on, at most to the end."""
        return block * self.block_bytes, min((block + count) * self.block_bytes, self.size_bytes) - 1

    def is_right(self, block: int, content: bytes) -> bool:
        """Is this the content of the blocks from `block` on?"""
        for start in range(0, len(content), self.block_bytes):
            digest = hashlib.blake2b(content[start : start + self.block_bytes], digest_size=self.digest_bytes).digest()
            place = (block + start // self.block_bytes) * self.digest_bytes
            if digest != self.digests[place : place + self.digest_bytes]:
                return False
        return True


def get(host: str, first: int, last: int) -> bytes:
    """The request for a range of bytes, on a connection that is kept."""
    return b"GET %s HTTP/1.1\r\nHost: %s\r\nRange: bytes=%d-%d\r\n\r\n" % (PATH.encode(), host.encode(), first, last)


def answer(conn: socket.socket, first: int, last: int) -> tuple[bytes, int]:
    """The body, and when its last part came. OSError: broken; ValueError: not the range that was asked for."""
    data = b""
    while b"\r\n\r\n" not in data:
        part, when_ns = receive(conn)
        if not part:
            raise ConnectionResetError("closed by the service")
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    wanted = b"content-range: bytes %d-%d/" % (first, last)
    if not head.startswith(b"HTTP/1.1 206") or wanted not in head.lower():
        raise ValueError(f"the service answered {head[:80]!r}")
    parts = [body]
    missing = last - first + 1 - len(body)
    while missing > 0:
        part, when_ns = receive(conn)
        if not part:
            raise ConnectionResetError("closed by the service")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts), when_ns


class Peeking(Talk):
    """One block at a time, from all over the file."""

    rate = 500.0

    def __init__(self, place: Place, video: Video) -> None:
        self.host, self.video = place.host, video

    def ask(self, conn: socket.socket, number: int) -> int:
        block = number * STRIDE % self.video.blocks
        first, last = self.video.span(block, 1)
        conn.sendall(get(self.host, first, last))
        content, when_ns = answer(conn, first, last)
        if not self.video.is_right(block, content):
            raise ValueError(f"block {block} is not what it should be")
        return when_ns


class Buffer:
    """What a player holds, in seconds of playing time. It starts to play when the buffer is full, and again after a
    stall; a stall is a moment in which there is nothing left to play."""

    def __init__(self, full_s: float) -> None:
        self.full_s = full_s
        self.held_s = 0.0
        self.playing = False
        self.played_s = 0.0
        self.before_s: float | None = None

    def play(self, now_s: float) -> bool:
        """Let time pass until `now_s`; True when it stalls now."""
        passed_s = 0.0 if self.before_s is None else now_s - self.before_s
        self.before_s = now_s
        if not self.playing:
            return False
        self.played_s += min(passed_s, self.held_s)
        self.held_s -= passed_s
        if self.held_s > 0:
            return False
        self.held_s = 0.0
        self.playing = False
        return True

    def add(self, seconds: float) -> None:
        self.held_s += seconds
        if self.held_s >= self.full_s:
            self.playing = True

    def room(self, seconds: float) -> bool:
        return self.held_s + seconds <= self.full_s or not self.playing


@dataclass
class Range:
    """One range that the player asked for."""

    sent_ns: int
    took_ms: float = 0.0
    answered: bool = False
    right: bool = False


class Player(Side):
    """Plays at the video's own rate, round and round; asks for the next segment when its buffer has room."""

    name = "player"

    def __init__(self, place: Place, video: Video, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.place, self.video, self.clock_s = place, video, clock_s
        self.buffer = Buffer(float(place.settings.get("BUFFER_S", "2")))
        self.conn: socket.socket | None = None
        self.block = 0
        self.ranges: list[Range] = []
        self.stalls_ns: list[int] = []
        self.resets_ns: list[int] = []
        self.lowest: list[tuple[int, float]] = []  # (ns, seconds held)

    def segment_s(self) -> float:
        first, last = self.video.span(self.block, SEGMENT_BLOCKS)
        return (last - first + 1) / self.video.bytes_per_s

    def play(self) -> None:
        """Time has passed: note a stall when there is one."""
        before = self.buffer.playing
        if self.buffer.play(self.clock_s()):
            self.stalls_ns.append(time.monotonic_ns())
        if before:
            self.lowest.append((time.monotonic_ns(), self.buffer.held_s))

    def step(self) -> None:
        self.play()
        if not self.buffer.room(self.segment_s()):
            time.sleep(LONGEST_STEP_S / 5)
            return
        try:
            if self.conn is None:
                self.conn = self.place.connect()
                self.conn.settimeout(self.place.timeout_s)
            self.fetch(self.conn)
        except OSError:
            if self.conn is not None:
                self.resets_ns.append(time.monotonic_ns())
                self.conn.close()
                self.conn = None
            time.sleep(RETRY_CONNECT_S)

    def fetch(self, conn: socket.socket) -> None:
        first, last = self.video.span(self.block, SEGMENT_BLOCKS)
        asked = Range(time.monotonic_ns())
        self.ranges.append(asked)
        conn.sendall(get(self.place.host, first, last))
        try:
            content, _ = answer(conn, first, last)
        except ValueError:
            content = b""
        asked.took_ms = (time.monotonic_ns() - asked.sent_ns) / 1e6
        asked.answered = True
        asked.right = bool(content) and self.video.is_right(self.block, content)
        self.play()  # it went on playing meanwhile
        self.buffer.add(self.segment_s())
        self.block += SEGMENT_BLOCKS
        if self.block >= self.video.blocks:
            self.block = 0

    def figures(self, from_ns: int, to_ns: int) -> Figures:
        window = [asked for asked in self.ranges if from_ns <= asked.sent_ns < to_ns]
        now_ns = time.monotonic_ns()
        held = [seconds for when, seconds in self.lowest if from_ns <= when < now_ns]
        wrong = sum(asked.answered and not asked.right for asked in window)
        found = {
            "ok": wrong == 0,
            "requests": len(window),
            "answered": sum(asked.answered for asked in window),
            "resets": sum(from_ns <= when < now_ns for when in self.resets_ns),
            "stalls": sum(from_ns <= when < now_ns for when in self.stalls_ns),
            "wrong": wrong,
            "longest_range_ms": max((asked.took_ms for asked in window), default=0.0),
            "lowest_buffer_ms": min(held, default=0.0) * 1e3,
        }
        self.ranges, self.lowest = [], []
        return found


class VideoUser(User):
    def prepare(self) -> None:
        self.video = Video.of(self.place)

    def talk(self) -> Talk:
        return Peeking(self.place, self.video)

    def sides(self) -> Sequence[Side]:
        return (Player(self.place, self.video),)


def user(place: Place) -> User:
    return VideoUser(place)
