"""The demo service: what it promises, and what users may do to it."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from whimbrel.workloads.memory import service
from whimbrel.workloads.memory.service import Memory, expected_digest, usable_pages


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    argv = [sys.executable, service.__file__, "--port", str(number), "--memory-mb", "4"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"serving" in process.stdout.readline()
    yield number
    alive = process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    assert alive, "no user's behaviour ends the service"


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def ask(port: int, *parts: bytes, lines: int = 1) -> list[bytes]:
    with connect(port) as conn:
        for part in parts:
            conn.sendall(part)
            time.sleep(0.02)
        answer = b""
        while answer.count(b"\n") < lines:
            data = conn.recv(4096)
            assert data
            answer += data
    return answer.splitlines()


@pytest.mark.parametrize("writes", [0, 1, 100, 1024, 5000])
def test_memory_is_what_its_writes_say(writes: int) -> None:
    memory = Memory(4)
    for _ in range(writes):
        memory.write_next()
    assert memory.digest() == (writes, expected_digest(writes, 4))


def test_every_page_is_written_before_any_twice() -> None:
    pages = usable_pages(4)
    assert len({service.page_of(write, pages) for write in range(1, pages + 1)}) == pages


def test_count_goes_up_whatever_the_segments(port: int) -> None:
    (first,) = ask(port, b"count\n")
    begin = int(first.split()[0])
    assert [int(line.split()[0]) for line in ask(port, b"count\ncount\n", lines=2)] == [begin + 1, begin + 2]
    (split,) = ask(port, b"cou", b"nt\n")
    assert int(split.split()[0]) == begin + 3


def test_unknown_requests_are_answered(port: int) -> None:
    assert ask(port, b"what?\n") == [b"unknown request"]


def test_digest_is_right_and_others_are_served_meanwhile(port: int) -> None:
    ((writes, digest),) = (line.split() for line in ask(port, b"digest\n"))
    assert int(digest) == expected_digest(int(writes), 4)


def test_users_who_leave_rudely_do_no_harm(port: int) -> None:
    for request in (b"count\n", b"digest\n", b"cou", b"x" * 20000, b""):
        for _ in range(10):
            conn = connect(port)
            conn.sendall(request)
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            conn.close()
    assert ask(port, b"count\n")


def test_datagrams_come_back_unchanged(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        for size in (0, 1, 64, 1400):
            sock.sendto(bytes(range(256)) * 6 if size == 1400 else b"x" * size, ("127.0.0.1", port))
            data, _ = sock.recvfrom(4096)
            assert data == (bytes(range(256)) * 6 if size == 1400 else b"x" * size)
