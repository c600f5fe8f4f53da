"""The writer against the real Redis of the image: what was acknowledged and is not there is lost."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from whimbrel.client.contract import Place
from whimbrel.workloads.builder import build
from whimbrel.workloads.catalogue import find
from whimbrel.workloads.redis.client import Answers, Counting, RedisUser, Writer, request

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="building needs root")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    bundle = tmp_path_factory.mktemp("redis") / "bundle"
    image = build(find("redis"))
    subprocess.run(["umoci", "unpack", "--image", image.umoci, bundle], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    argv = ["chroot", bundle / "rootfs", "/usr/bin/redis-server", "--port", str(port), "--save", "", "--dir", "/tmp"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    where = Place("127.0.0.1", port, {"PRELOAD_MB": "2"}, timeout_s=5)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                where.connect().close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield where
    finally:
        server.kill()
        server.wait()


def command(place: Place, *words: bytes) -> bytes | int | None:
    with place.connect() as conn:
        return next(iter(Answers(conn).of([request(*words)])))


def write_for(writer: Writer, seconds: float) -> int:
    begin_ns = time.monotonic_ns()
    while time.monotonic_ns() - begin_ns < seconds * 1e9:
        writer.step()
    return begin_ns


@pytest.fixture
def writer(place: Place) -> Writer:
    return Writer(place, os.urandom(4).hex().encode(), rate=4000)


def test_what_was_written_is_there_and_goes_afterwards(place: Place, writer: Writer) -> None:
    begin_ns = write_for(writer, 0.3)
    seen = writer.figures(begin_ns, time.monotonic_ns())
    assert (seen["ok"], seen["lost"], seen["resets"]) == (True, 0, 0)
    assert seen["requests"] == seen["answered"] == writer.numbers
    assert 500 < writer.numbers < 2000
    assert command(place, b"EXISTS", writer.key(0)) == 0, "Redis must not grow"


@pytest.mark.parametrize("harm", ["removed", "changed"])
def test_an_acknowledged_write_that_is_not_there_is_lost(place: Place, writer: Writer, harm: str) -> None:
    begin_ns = write_for(writer, 0.2)
    writer._read(0.1)
    if harm == "removed":
        assert command(place, b"DEL", writer.key(17), writer.key(99)) == 2
    else:
        command(place, b"SET", writer.key(17), b"something else")
        command(place, b"SET", writer.key(99), writer.value(98))
    seen = writer.figures(begin_ns, time.monotonic_ns())
    assert (seen["lost"], seen["ok"]) == (2, False)
    assert writer.figures(begin_ns, time.monotonic_ns())["lost"] == 0, "each loss is counted once"


def test_a_broken_connection_is_counted_and_what_was_acknowledged_still_checked(place: Place, writer: Writer) -> None:
    begin_ns = write_for(writer, 0.2)
    command(place, b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
    write_for(writer, 0.3)
    seen = writer.figures(begin_ns, time.monotonic_ns())
    assert seen["resets"] == 4
    assert seen["lost"] == 0
    assert seen["answered"] <= seen["requests"]


def test_a_write_that_redis_refuses_is_no_success(place: Place, writer: Writer) -> None:
    command(place, b"CONFIG", b"SET", b"min-replicas-to-write", b"1")
    try:
        begin_ns = write_for(writer, 0.1)
        seen = writer.figures(begin_ns, time.monotonic_ns())
    finally:
        command(place, b"CONFIG", b"SET", b"min-replicas-to-write", b"0")
    assert (seen["ok"], seen["lost"]) == (False, 0)
    assert seen["refused"] == seen["answered"] > 0
    assert "NOREPLICAS" in seen["refusal"]


def test_a_counter_that_was_set_back_is_seen(place: Place) -> None:
    talk = Counting(b"run")
    with place.connect() as conn:
        assert talk.ask(conn, 1) <= talk.ask(conn, 2)
        command(place, b"SET", b"c:run", b"1")
        with pytest.raises(ValueError, match="INCR"):
            talk.ask(conn, 3)


def test_preloaded_values_are_sampled(place: Place) -> None:
    user = RedisUser(place)
    user.prepare()
    assert user.check() == {"ok": True, "lost": 0, "sampled": 512}
    command(place, b"SET", b"p:256", b"?")
    assert user.check()["lost"] == 1
