"""Pages from a process through a real connection into a store: what arrives is what the process holds, whatever the
codec and however often a page crosses; and what a hostile source may send does no harm."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from whimbrel.memory.codecs import Coding, Encoder, to_runs
from whimbrel.memory.ranges import Ranges, as_ranges
from whimbrel.memory.store import ZERO_SLOT, PageStore
from whimbrel.memory.tracker import ProcessPages
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.carriers.stream import AHEAD_S, StreamCarrier
from whimbrel.migrate.coder import NO_COPIES
from whimbrel.migrate.intake import PageIntake
from whimbrel.migrate.pagechannel import HEADER, Kind, LinkProbe, PageChannel
from whimbrel.migrate.pages import PageSender
from whimbrel.model.errors import ProtocolMismatch, StepFailed
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.strategies import Codec, strategy_of

PAGES = 1500
NS_PID = 7
WORDS = PAGE_BYTES // 8


class Target:
    """A process whose private memory can be set from here, page by page."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, PAGES * PAGE_BYTES)
        private = np.frombuffer(mmap.mmap(-1, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE), np.uint8)
        self.start = private.ctypes.data
        self.contents = np.frombuffer(self._shared, np.uint64).reshape(PAGES, WORDS)
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            while theirs.recv(1):
                private[:] = np.frombuffer(self._shared, np.uint8)
                theirs.send(b"x")
            os._exit(0)
        theirs.close()

    def write(self) -> None:
        """From now on its memory is what `contents` says."""
        self._ours.send(b"x")
        self._ours.recv(1)

    def ranges(self, pages: np.ndarray) -> Ranges:
        numbers = pages.astype(np.uint64) + np.uint64(self.start // PAGE_BYTES)
        return to_runs(numbers, np.zeros(len(pages), np.uint8))

    def dirty(self, pages: np.ndarray) -> list[ProcessPages]:
        return [ProcessPages(self.pid, NS_PID, self.ranges(pages))]

    def close(self) -> None:
        self._ours.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


class Destination:
    """Takes frames in a thread; keeps the error that ended it."""

    def __init__(self) -> None:
        self.store = PageStore(0)
        self.intake = PageIntake(self.store)
        self.error: Exception | None = None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        self._channel = PageChannel(theirs)
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        rounds = 0
        try:
            while True:
                kind, number, runs, size = self._channel.receive_header()
                if kind is Kind.PAGES:
                    self.intake.take(self._channel, number, runs, size, recent=rounds > 0)
                elif kind is Kind.ROUND:
                    rounds += 1
                    self.store.merge()
                    self._channel.send(Kind.ACK, number)
                else:
                    return
        except Exception as error:
            self.error = error
            self._channel.close()

    def wait(self) -> Exception | None:
        with contextlib.suppress(OSError, StepFailed):
            PageChannel(self.sock).send(Kind.RESTORE)
        self._thread.join()
        self.store.merge()
        return self.error

    def holds(self, target: Target, ns_pid: int = NS_PID) -> np.ndarray:
        """The store's newest copies of all pages of the target's memory, in order."""
        everything = as_ranges([(target.start, target.start + PAGES * PAGE_BYTES)])
        pages, slots = self.store.of(ns_pid).select(everything)
        assert len(pages) == PAGES, "a page is not known"
        return self.store.words()[slots]

    def close(self) -> None:
        self.sock.close()
        self._thread.join()
        self._channel.close()
        self.store.close()


@pytest.fixture
def destination() -> Iterator[Destination]:
    made = Destination()
    yield made
    made.close()


@dataclass
class Turn:
    """What the target's program does before one round, and how much of it is zero afterwards."""

    rng: np.random.Generator
    contents: np.ndarray

    def first(self) -> None:
        self.contents[:300] = self.rng.integers(0, 2**64, (300, WORDS), np.uint64)
        self.contents[300:1000] = np.arange(WORDS)
        self.contents[300:1000, 0] = np.arange(700)

    def next(self) -> np.ndarray:
        """Changes some pages in every way there is; returns them, and some that did not change."""
        pages = np.sort(self.rng.permutation(PAGES)[:400])
        for page in pages[:350]:
            match self.rng.integers(5):
                case 0:
                    self.contents[page] = 0
                case 1:
                    self.contents[page] = self.rng.integers(0, 2**64, WORDS, np.uint64)
                case 2:
                    self.contents[page, self.rng.integers(WORDS)] += np.uint64(1)
                case 3:
                    self.contents[page] = page
                case 4:
                    self.contents[page, -1] ^= np.uint64(1)
        return pages


@pytest.mark.parametrize("codec", Codec)
def test_what_arrives_is_what_the_process_holds(target: Target, destination: Destination, codec: Codec) -> None:
    channel = PageChannel(destination.sock)
    channel.limit(100e6 if codec is Codec.AUTO else 0)  # so that packing pays
    sender = PageSender(channel, codec)
    turn = Turn(np.random.default_rng(5), target.contents)
    turn.first()
    total = Carried()
    pages = np.arange(PAGES)
    for number in range(1, 6):
        target.write()
        carried = sender.send(target.dirty(pages))
        assert carried.pages == len(pages)
        assert carried.zero_pages == int((target.contents[pages] == 0).all(axis=1).sum())
        total += carried
        if number != 3:  # as in the freeze, where pages cross twice with no round between
            channel.send(Kind.ROUND, number)
            channel.expect(Kind.ACK, number=number)
        pages = turn.next()
    target.write()
    total += sender.send(target.dirty(np.arange(PAGES)))
    assert destination.wait() is None
    assert (destination.holds(target) == target.contents).all()
    sender.close()
    sent = dict(total.codecs)
    assert sum(sent.values()) + total.zero_pages == total.pages
    packed, differences = {"zstd"}, {"xor+zstd", "unchanged"}
    expected = {Codec.RAW: set(), Codec.ZSTD: packed}.get(codec, packed | differences)
    assert sent.keys() == expected | {"raw"}, "batches of noise cross raw whatever the codec"
    assert total.sent_bytes < (total.pages - total.zero_pages) * PAGE_BYTES * (1.01 if codec is Codec.RAW else 0.8)


def test_zero_pages_are_known_and_take_no_memory(target: Target, destination: Destination) -> None:
    sender = PageSender(PageChannel(destination.sock), Codec.RAW)
    before = destination.store.used_pages
    carried = sender.send(target.dirty(np.arange(PAGES)))
    assert destination.wait() is None
    assert (carried.pages, carried.zero_pages) == (PAGES, PAGES)
    assert carried.sent_bytes < PAGE_BYTES
    assert destination.store.used_pages == before
    assert len(destination.store.of(NS_PID).zeros()) == PAGES


def test_without_memory_for_copies_there_is_no_xor(
    target: Target, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whimbrel.memory.copies.short_of_memory", lambda _: True)
    sender = PageSender(PageChannel(destination.sock), Codec.DELTA)
    target.contents[:] = 9
    target.write()
    for _ in range(2):
        carried = sender.send(target.dirty(np.arange(PAGES)))
        assert (carried.codec, carried.remark) == ("zstd", NO_COPIES)
    assert destination.wait() is None
    assert (destination.holds(target) == target.contents).all()


def test_copies_that_outgrow_the_memory_are_given_up_and_the_rest_arrives(
    target: Target, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = PageSender(PageChannel(destination.sock), Codec.DELTA)
    target.contents[:] = 9
    target.write()
    sender.send(target.dirty(np.arange(700)))
    # the next page that needs room at the source finds none
    store = sender._coder._copies._store
    assert store is not None
    monkeypatch.setattr(store, "_capacity_pages", store.used_pages)
    target.contents[:, 5] = 1
    target.write()
    carried = sender.send(target.dirty(np.arange(PAGES)))
    assert carried.remark == NO_COPIES
    assert dict(carried.codecs).keys() == {"zstd", "xor+zstd"}
    target.contents[:, 5] = 2
    target.write()
    assert sender.send(target.dirty(np.arange(PAGES))).codec == "zstd"
    assert destination.wait() is None
    assert (destination.holds(target) == target.contents).all()


def frame(runs: list[tuple[int, int]], *contents: bytes, size: int | None = None, count: int | None = None) -> bytes:
    table = np.array(runs, np.uint64).tobytes()
    body = table + b"".join(contents)
    return HEADER.pack(Kind.PAGES, NS_PID, len(runs) if count is None else count, size or len(body)) + body


PAGE = bytes(PAGE_BYTES - 1) + b"x"
BLOCK = Encoder().packed(as_ranges([(0, 4 * PAGE_BYTES)]), memoryview(PAGE * 4), None).block


@pytest.mark.parametrize(
    "hostile",
    [
        frame([(0x1000, 0x2000)], PAGE, size=17 + PAGE_BYTES),
        frame([(0x1000, 0x2000)], PAGE, PAGE),
        frame([(0x1000 | Coding.ZERO, 0x2000)], PAGE),
        frame([(0x1000 | Coding.ZERO, 1 << 50)]),
        frame([(0x1000 | Coding.SAME, 0x2000)]),
        frame([(0x1000 | Coding.DELTA, 0x5000)], BLOCK),
        frame([(0x1000 | Coding.PACKED, 0x4000)], BLOCK),
        frame([(0x1000 | Coding.PACKED, 0x6000)], BLOCK),
        frame([(0x1000 | Coding.PACKED, 0x5000)]),
        frame([(0x1000 | Coding.PACKED, 0x5000)], BLOCK[:-1]),
        frame([(0x1000 | Coding.PACKED, 0x5000)], PAGE * 5),
        frame([(0x1000, 0x2000), (0x2000 | Coding.PACKED, 0x6000)], BLOCK),
        frame([(0x1000, 0x2000)], PAGE, count=1 << 19),
        frame([(0x5000, 0x6000), (0x1000, 0x2000)], PAGE * 2),
    ],
    ids=lambda hostile: f"{len(hostile)} bytes",
)
def test_hostile_frames_are_refused_and_leave_nothing(destination: Destination, hostile: bytes) -> None:
    with contextlib.suppress(OSError):  # it may hang up before it has heard all
        destination.sock.sendall(hostile)
        destination.sock.shutdown(socket.SHUT_WR)
    assert isinstance(destination.wait(), ProtocolMismatch)
    assert destination.store.used_pages == ZERO_SLOT + 1
    assert not destination.store.of(NS_PID).pages.size


def test_a_good_frame_of_every_coding_is_taken(destination: Destination) -> None:
    destination.sock.sendall(frame([(0x1000, 0x2000), (0x2000 | Coding.PACKED, 0x6000)], PAGE, BLOCK))
    destination.sock.sendall(frame([(0x1000 | Coding.ZERO, 0x2000), (0x2000 | Coding.SAME, 0x6000)]))
    assert destination.wait() is None
    assert len(destination.store.of(NS_PID).pages) == 5
    assert destination.store.of(NS_PID).zeros().tolist() == [1]


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to trace processes of others")
def test_a_slow_link_gets_no_more_than_it_carries_before_the_order_to_restore(
    target: Target, destination: Destination, tmp_path: Path
) -> None:
    """While packets begin to be held, and while CRIU dumps; what is left crosses later, and nothing is missing."""
    bytes_per_s = 4e6
    channel = PageChannel(destination.sock)
    carrier = StreamCarrier(target.pid, channel, strategy_of("hybrid"), holes=True)

    def after(seconds: float) -> tuple[Callable[[], bool], Callable[[], float]]:
        """Whether so much time is over, and how much is, up to the first time that it was asked and told so."""
        begun_s, ended_s = time.monotonic(), 0.0

        def over() -> bool:
            nonlocal ended_s
            now_s = time.monotonic()
            if now_s - begun_s < seconds:
                return False
            ended_s = ended_s or now_s
            return True

        return over, lambda: ended_s - begun_s

    try:
        carrier.round(1)
        channel.limit(bytes_per_s * 8)
        target.contents[:] = np.random.default_rng(1).integers(0, 2**64, target.contents.shape, np.uint64)
        target.write()
        parts = []
        for step in (carrier.while_holding, carrier.while_dumping):
            over, took_s = after(0.3)
            parts.append(step(over))
            assert 0 < parts[-1].sent_bytes <= bytes_per_s * (took_s() + 2 * AHEAD_S), "at no time does more wait"
            assert parts[-1].sent_bytes > bytes_per_s * AHEAD_S, "the link goes on as long as it is to"
        parts.append(carrier.last(tmp_path))
        assert sum(part.pages for part in parts) >= PAGES
        assert destination.wait() is None
        assert (destination.holds(target, target.pid) == target.contents).all()
    finally:
        carrier.close()


def test_a_long_way_is_not_taken_for_a_slow_link() -> None:
    probe = LinkProbe()
    tries = []
    while probe.size_bytes:
        tries.append(probe.size_bytes)
        probe.took(0.1 + probe.size_bytes / 12.5e6)
    assert len(tries) == 4, "tries that took less than the way told nothing"
    assert probe.bytes_per_s == pytest.approx(12.5e6)


def test_a_slow_link_is_asked_once() -> None:
    probe = LinkProbe()
    probe.took(0.001)
    probe.took(1.0)
    assert (probe.size_bytes, round(probe.bytes_per_s / 65536, 2)) == (0, 1.0)
