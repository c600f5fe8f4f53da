"""What a sender learns of its link while pages cross: real connections, whose other side takes what a test says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from whimbrel.memory.batches import BATCH_BYTES
from whimbrel.migrate.linkwatch import LinkWatch, _Figures
from whimbrel.plan.codec_choice import RAW_ABOVE_BYTES_PER_S

FIRST_BYTES = 256 << 10


@contextmanager
def connection(*, taking: threading.Event) -> Iterator[socket.socket]:
    """The other side takes nothing before `taking`, and all that comes from then on."""

    def take(conn: socket.socket) -> None:
        taking.wait()
        buffer = bytearray(1 << 20)
        while conn.recv_into(buffer):
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    ours.settimeout(20)
    taker = threading.Thread(target=take, args=(theirs,))
    taker.start()
    try:
        yield ours
    finally:
        taking.set()
        ours.close()
        taker.join()
        theirs.close()


def probe(watch: LinkWatch, ours: socket.socket) -> list[tuple[int, float]]:
    """Batches as large as it wants them, until it knows: bytes and seconds of each."""
    batches = []
    while size_bytes := watch.probe_bytes:
        start_s = time.monotonic()
        with watch.sending(packed=False):
            ours.sendall(bytes(size_bytes))
        batches.append((size_bytes, time.monotonic() - start_s))
    return batches


def test_a_batch_that_was_through_at_once_tells_nothing() -> None:
    """Whoever waits wakes up late: a small batch makes a slow link of any, so the next one is larger."""
    taking = threading.Event()
    taking.set()
    for _ in range(20):
        with connection(taking=taking) as ours:
            watch = LinkWatch(ours)
            batches = probe(watch, ours)
            last = batches[-1]
            assert [size for size, _ in batches] == [FIRST_BYTES, 4 * FIRST_BYTES, BATCH_BYTES][: len(batches)]
            assert last[0] > FIRST_BYTES or last[1] > 0.004, "not told by a small batch that took no time"
            assert watch.link.looks == len(batches)
            assert watch.link.certain
            if last[0] / last[1] > 1.5 * RAW_ABOVE_BYTES_PER_S:
                assert watch.link.is_fast


def test_a_link_that_holds_the_first_batch_up_is_known_by_it() -> None:
    taking = threading.Event()
    with connection(taking=taking) as ours:
        watch = LinkWatch(ours)
        assert [size for size, _ in probe(watch, ours)] == [FIRST_BYTES]
        assert watch.link.certain
        assert 0 < watch.link.bytes_per_s < RAW_ABOVE_BYTES_PER_S
        assert not watch.link.is_fast


def test_what_nobody_has_acknowledged_yet_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a long way: batches stay small until something is known."""
    taking = threading.Event()
    taking.set()
    with connection(taking=taking) as ours:
        watch = LinkWatch(ours)
        monkeypatch.setattr(watch, "_figures", lambda: _Figures(0, 0, 0.3, 0.3))
        monkeypatch.setattr("whimbrel.migrate.linkwatch.unacked", lambda _: FIRST_BYTES)
        for _ in range(3):
            with watch.sending(packed=False):
                ours.sendall(bytes(FIRST_BYTES))
            assert (watch.probe_bytes, watch.link.looks) == (FIRST_BYTES, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_batches_with_next_to_nothing_on_the_wire_are_not_waited_for_for_ever(packed: bool) -> None:
    """Zero pages, and packed ones: they tell nothing of the link, and what comes later must."""
    taking = threading.Event()
    taking.set()
    with connection(taking=taking) as ours:
        watch = LinkWatch(ours)
        sizes = []
        while size_bytes := watch.probe_bytes:
            sizes.append(size_bytes)
            with watch.sending(packed=packed):
                ours.sendall(bytes(64))
        assert sizes == [FIRST_BYTES, 4 * FIRST_BYTES, BATCH_BYTES]
        assert watch.link.looks == 0
        deadline_s = time.monotonic() + 10
        while not watch.link.looks:
            assert time.monotonic() < deadline_s
            with watch.sending(packed=packed):
                ours.sendall(bytes(1 << 20))
        assert watch.link.at_least_bytes_per_s > 0
