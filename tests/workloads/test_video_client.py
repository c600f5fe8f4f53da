"""The player: what counts as a stall, as a wrong range, as a reset."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from whimbrel.client.contract import Place
from whimbrel.workloads.video.client import Buffer, Peeking, Player, Video

BLOCK = 1024
SIZE = 64 * BLOCK * 4 + 300  # four segments and a rest
SECONDS = 2.0


def played(buffer: Buffer, script: list[tuple[float, float]]) -> list[float]:
    """Times at which it stalls; `script` is (time, seconds of video that arrive then)."""
    stalls = []
    for now_s, arrived_s in script:
        if buffer.play(now_s):
            stalls.append(now_s)
        if arrived_s:
            buffer.add(arrived_s)
    return stalls


def test_a_buffer_that_is_kept_filled_never_stalls() -> None:
    assert played(Buffer(1.0), [(0, 1.0), (0.5, 0.5), (1.0, 0.5), (1.9, 0.9)]) == []


def test_an_empty_buffer_is_one_stall_however_long_it_lasts() -> None:
    buffer = Buffer(1.0)
    assert played(buffer, [(0, 1.0), (1.2, 0), (3, 0), (5, 0)]) == [1.2]
    assert buffer.played_s == pytest.approx(1.0)


def test_it_plays_again_when_the_buffer_is_full_and_may_stall_again() -> None:
    assert played(Buffer(1.0), [(0, 1.0), (1.5, 0.5), (2.5, 0.5), (3.0, 0), (3.6, 0)]) == [1.5, 3.6]


def test_waiting_for_the_first_picture_is_no_stall() -> None:
    assert played(Buffer(1.0), [(0, 0), (9, 0.5), (20, 0)]) == []


class Web:
    """Serves ranges of one content on the loopback, and does what it is told to do wrong."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.pause_s = 0.0
        self.damage = self.reset = self.status = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            conn, _ = self.listener.accept()
            threading.Thread(target=self.talk, args=(conn,), daemon=True).start()

    def talk(self, conn: socket.socket) -> None:
        pending = b""
        while data := conn.recv(4096):
            pending += data
            while b"\r\n\r\n" in pending:
                request, _, pending = pending.partition(b"\r\n\r\n")
                if not self.answer(conn, request):
                    return

    def answer(self, conn: socket.socket, request: bytes) -> bool:
        if self.reset:
            self.reset = False
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            conn.close()
            return False
        if self.pause_s:
            pause_s, self.pause_s = self.pause_s, 0.0
            time.sleep(pause_s)
        match = re.search(rb"bytes=(\d+)-(\d+)", request)
        assert match is not None
        first, last = int(match[1]), int(match[2])
        body = self.content[first : last + 1]
        if self.damage:
            self.damage = False
            body = body[:-1] + bytes([body[-1] ^ 1])
        head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{len(self.content)}\r\n"
        conn.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return True


@pytest.fixture
def web() -> Web:
    return Web(hashlib.shake_128(b"video").digest(SIZE))


@pytest.fixture
def place(web: Web, tmp_path: Path) -> Place:
    blocks = [web.content[at : at + BLOCK] for at in range(0, SIZE, BLOCK)]
    (tmp_path / "blocks.bin").write_bytes(b"".join(hashlib.blake2b(one, digest_size=8).digest() for one in blocks))
    about = {"bytes": SIZE, "seconds": SECONDS, "block_bytes": BLOCK, "digest_bytes": 8}
    (tmp_path / "video.json").write_text(json.dumps(about))
    return Place("127.0.0.1", web.port, {"BUFFER_S": "0.6"}, tmp_path, timeout_s=5)


def watch(player: Player, seconds: float) -> dict[str, object]:
    begin_ns = time.monotonic_ns()
    while time.monotonic_ns() - begin_ns < seconds * 1e9:
        player.step()
    return player.figures(begin_ns, time.monotonic_ns())


def test_a_service_that_answers_lets_it_play(place: Place) -> None:
    seen = watch(Player(place, Video.of(place)), 1.5)
    assert (seen["stalls"], seen["resets"], seen["wrong"], seen["ok"]) == (0, 0, 0, True)
    assert seen["requests"] == seen["answered"]
    assert isinstance(seen["requests"], int)
    assert seen["requests"] >= 3


def test_a_pause_longer_than_the_buffer_is_a_stall(place: Place, web: Web) -> None:
    player = Player(place, Video.of(place))
    watch(player, 0.5)
    web.pause_s = 1.0
    seen = watch(player, 1.5)
    assert seen["stalls"] == 1
    assert seen["resets"] == 0
    assert seen["ok"], "late is not wrong"


def test_a_damaged_range_is_seen(place: Place, web: Web) -> None:
    player = Player(place, Video.of(place))
    watch(player, 0.3)
    web.damage = True
    seen = watch(player, 1.2)
    assert (seen["wrong"], seen["ok"]) == (1, False)


def test_a_broken_connection_is_counted_and_it_goes_on(place: Place, web: Web) -> None:
    player = Player(place, Video.of(place))
    watch(player, 0.3)
    web.reset = True
    seen = watch(player, 1.2)
    assert (seen["resets"], seen["wrong"]) == (1, 0)
    assert isinstance(seen["answered"], int)
    assert seen["answered"] >= 2


def test_each_small_range_is_compared(place: Place, web: Web) -> None:
    talk = Peeking(place, Video.of(place))
    with place.connect() as conn:
        for number in range(400):  # more often than there are blocks, so also the short one at the end
            talk.ask(conn, number)
        web.damage = True
        with pytest.raises(ValueError, match="not what it should be"):
            talk.ask(conn, 7)


def test_an_image_that_was_never_built_here_is_one_clear_line() -> None:
    with pytest.raises(FileNotFoundError, match="whimbrel workload build"):
        Video.of(Place("127.0.0.1", 1))
