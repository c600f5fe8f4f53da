"""The services that need nothing but Python: what they promise, and what users may do to them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator

import pytest

from whimbrel.workloads.memory.service import Memory, expected_digest, page_bytes, usable_pages
from whimbrel.workloads.simple import service as simple


@pytest.mark.parametrize("contents", ["words", "text", "random"])
@pytest.mark.parametrize("zero_share", [0.0, 0.4])
def test_memory_is_what_its_writes_say_whatever_the_contents(contents: str, zero_share: float) -> None:
    memory = Memory(2, contents, zero_share)
    for _ in range(700):
        memory.write_next()
    assert memory.digest() == (700, expected_digest(700, 2, contents, zero_share))
    assert memory.digest()[1] != expected_digest(699, 2, contents, zero_share)


@pytest.mark.parametrize(
    ("contents", "least", "most"), [("words", 0, 0.05), ("text", 0.3, 0.75), ("random", 0.99, 1.1)]
)
def test_contents_compress_as_their_name_says(contents: str, least: float, most: float) -> None:
    pages = [page_bytes(write, write * 37, contents) for write in range(50)]
    assert {len(page) for page in pages} == {4096}
    share = sum(len(zlib.compress(page)) for page in pages) / (50 * 4096)
    assert least <= share <= most


def test_the_share_of_zero_pages_is_what_was_asked_for() -> None:
    pages = usable_pages(16)
    zero = sum(page_bytes(1, page, "random", 0.25) == bytes(4096) for page in range(pages))
    assert zero / pages == pytest.approx(0.25, abs=0.02)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, simple.__file__], env={"PORT": str(number)}, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"serving" in process.stdout.readline()
    yield number
    alive = process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    assert alive, "no user's behaviour ends the service"


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as conn, conn.makefile("rb") as file:
        conn.sendall(request)
        return file.readline()


def test_a_session_outlives_its_connections(port: int) -> None:
    assert ask(port, b"task ann\n").split()[0] == b"1"
    first, total = (int(word) for word in ask(port, b"task bob\n").split())
    assert ask(port, b"task ann\n").split() == [b"2", b"%d" % (total + 1)]
    assert first == 1


def test_what_is_no_task_is_answered_and_not_counted(port: int) -> None:
    before = int(ask(port, b"task eve\n").split()[1])
    for request in (b"\n", b"task\n", b"task a b\n", b"x" * 100 + b"\n"):
        assert ask(port, request) == b"unknown request\n"
    with contextlib.suppress(ConnectionResetError):  # the same, said sooner
        assert ask(port, b"x" * 20000) == b"", "a line without end ends the connection"
    assert int(ask(port, b"task eve\n").split()[1]) == before + 1
