"""Links of a given rate and delay, between real namespaces. Times are taken by the kernel where a packet arrives."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from whimbrel.bench.shaped import Ends, linked_pair
from whimbrel.model.link import LEAST_QUEUE_BYTES, LinkShape
from whimbrel.network import netns
from whimbrel.network.shaping import delay_by
from whimbrel.network.shaping.relay import HELD_BYTES, Direction

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]
PORT = 5201
DELAY_MS = 40.0
SO_TIMESTAMPNS = 35


@pytest.fixture(scope="module")
def slow() -> Iterator[Ends]:
    with linked_pair(LinkShape(rate_bps=20e6, delay_ms=DELAY_MS)) as ends:
        yield ends


class Receiver:
    """Collects numbered datagrams until `expected` have come or none came for a second."""

    def __init__(self, ends: Ends) -> None:
        self._socket = netns.call(Path(ends.destination), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.bind((ends.address, PORT))
        self._socket.settimeout(1.0)
        self.numbers: list[int] = []
        self.delays_ms: list[float] = []

    def collect(self, expected: int) -> None:
        with self._socket:
            while len(self.numbers) < expected:
                try:
                    data, control, _, _ = self._socket.recvmsg(2048, 64)
                except TimeoutError:
                    return
                number, sent_ns = struct.unpack_from("=Qq", data)
                seconds, nanoseconds = struct.unpack("=qq", control[0][2])
                self.numbers.append(number)
                self.delays_ms.append((seconds * 10**9 + nanoseconds - sent_ns) / 1e6)


def send(ends: Ends, count: int, *, size: int, pause_s: float) -> None:
    with netns.call(Path(ends.source), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.setsockopt(socket.SOL_SOCKET, 32, 32 << 20)  # SO_SNDBUFFORCE: it does not wait for the link
        for number in range(count):
            data = struct.pack("=Qq", number, time.time_ns()) + bytes(size - 16)
            sender.sendto(data, (ends.address, PORT))
            if pause_s:
                time.sleep(pause_s)


def talk(ends: Ends, count: int, *, size: int = 1200, pause_s: float = 0.0) -> Receiver:
    receiver = Receiver(ends)
    thread = threading.Thread(target=receiver.collect, args=(count,))
    thread.start()
    send(ends, count, size=size, pause_s=pause_s)
    thread.join()
    return receiver


def test_below_the_rate_every_packet_arrives_in_order_and_none_before_its_time(slow: Ends) -> None:
    heard = talk(slow, 1000, pause_s=0.001)  # 9.6 Mbit/s at most
    assert heard.numbers == list(range(1000))
    assert min(heard.delays_ms) >= DELAY_MS


def test_above_the_rate_the_queue_fills_and_the_newest_are_dropped(slow: Ends) -> None:
    """4,000 packets of 1,242 bytes at once: what passes at once, the queue, and what leaves meanwhile get through."""
    heard = talk(slow, 4000)
    assert heard.numbers == sorted(heard.numbers)
    assert LEAST_QUEUE_BYTES / 1242 - 1 <= len(heard.numbers) < 4000
    assert heard.numbers[:100] == list(range(100))


def test_a_stream_of_large_segments_comes_whole(slow: Ends) -> None:
    """TCP hands down segments of 64 KB with unfinished checksums: both cross the link and are made good."""
    data = os.urandom(2 << 20)
    got = bytearray()
    with netns.call(Path(slow.destination), lambda: socket.create_server((slow.address, PORT))) as server:

        def receive() -> None:
            connection, _ = server.accept()
            with connection:
                while part := connection.recv(1 << 20):
                    got.extend(part)

        thread = threading.Thread(target=receive)
        thread.start()
        with netns.call(Path(slow.source), lambda: socket.create_connection((slow.address, PORT))) as client:
            client.sendall(data)
        thread.join()
    assert bytes(got) == data


def test_delay_is_made_by_netem_or_by_a_process_of_ours(slow: Ends) -> None:
    assert (slow.relay > 0) == (delay_by() == "relay")


def test_a_plain_link_needs_no_relay() -> None:
    with linked_pair(LinkShape(rate_bps=50e6)) as ends:
        assert ends.relay == 0
        assert talk(ends, 50).numbers == list(range(50))


def test_what_is_on_its_way_is_bounded() -> None:
    """No more than `HELD_BYTES` are kept, the newest is dropped; what was kept leaves in order."""
    ours, source = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sink, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for each in (source, end):
        each.setblocking(False)
    with ours, source, sink, end:
        direction = Direction(source.fileno(), sink.fileno(), 3600.0)
        frame = bytes(60_000)
        fit = HELD_BYTES // len(frame)
        for _ in range(fit + 3):
            ours.send(frame)
            direction.take()
        assert direction.dropped == 3
        direction.deliver()
        with pytest.raises(BlockingIOError):
            end.recv(1)
