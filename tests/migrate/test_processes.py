"""Trees of processes with threads, whose memory comes and goes while the rounds run."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from marks import MANY, thorough
from tests.migrate.conftest import EDGES, Lab
from whimbrel.lab import commands
from whimbrel.model.migration import Outcome
from whimbrel.network import netns
from whimbrel.plan.strategies import known

WORKERS = 3
FIRST_PORT = 7101

# Every worker keeps a dictionary of mappings that it makes, fills, grows, drops and forks over, and knows what each
# must hold; asked, it compares all of them byte for byte.
PROGRAM = f"""
import mmap, os, random, socket, threading, time
def worker(number):
    rng, maps, lock, turns = random.Random(number), {{}}, threading.Lock(), [0]
    def churn():
        while True:
            with lock:
                turns[0] += 1
                kind = rng.randrange(5)
                if kind == 0 or len(maps) < 4:
                    size = 4096 * rng.randrange(1, 200)
                    maps[turns[0]] = [mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), bytearray(size)]
                key = rng.choice(list(maps))
                area, copy = maps[key]
                if kind == 1 and len(maps) > 12:
                    area.close(); del maps[key]
                elif kind == 2:
                    size = len(copy) + 4096 * rng.randrange(1, 20)
                    area.resize(size); copy.extend(bytes(size - len(copy)))
                elif kind == 3:
                    area.madvise(mmap.MADV_DONTNEED); copy[:] = bytes(len(copy))
                else:
                    at = rng.randrange(len(copy)); area[at] = copy[at] = turns[0] % 251
            time.sleep(0.0005)
    for _ in range(2):
        threading.Thread(target=churn, daemon=True).start()
    server = socket.create_server(("0.0.0.0", {FIRST_PORT} + number))
    while True:
        conn, _ = server.accept()
        while conn.recv(64):
            with lock:
                good = all(area[:] == bytes(copy) for area, copy in maps.values())
                conn.sendall(b"%d %d\\n" % (good, turns[0]))
for number in range({WORKERS}):
    if os.fork() == 0:
        worker(number)
while True:
    if os.fork() == 0:
        time.sleep(0.05); os._exit(0)
    time.sleep(0.1)
    os.waitpid(-1, os.WNOHANG)
"""


@contextmanager
def served(lab: Lab, name: str, program: str, users: int) -> Iterator[list[socket.socket]]:
    """Connections of users to the service, which runs on the first edge."""
    status = lab.controller.run_service(name, lab.image, EDGES[0], args=["/usr/bin/python3", "-c", program])
    where = commands.node_namespace("ue-1", lab_dir=lab.directory)
    address = status.spec.address.split("/")[0]

    def connect(port: int) -> socket.socket:
        deadline = time.monotonic() + 10
        while True:
            try:
                return netns.call(where, lambda: socket.create_connection((address, port), timeout=20))
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    sockets: list[socket.socket] = []
    try:
        sockets += [connect(FIRST_PORT + number) for number in range(users)]
        yield sockets
    finally:
        for sock in sockets:
            sock.close()
        print(lab.controller.logs(name))  # shown by pytest when the test has failed
        lab.controller.remove_service(name)


@pytest.fixture
def tree(lab: Lab) -> Iterator[list[socket.socket]]:
    with served(lab, "tree", PROGRAM, WORKERS) as users:
        yield users


def ask(user: socket.socket) -> tuple[bool, int]:
    user.sendall(b"?")
    good, turns = user.recv(64).split()
    return good == b"1", int(turns)


DEFAULT = ["hybrid"]  # of what else there is `test_strategies.py` moves one process


@pytest.mark.parametrize("strategy", [*DEFAULT, *thorough(*sorted(known().keys() - set(DEFAULT)))])
def test_all_processes_and_their_memory_arrive_whole(lab: Lab, tree: list[socket.socket], strategy: str) -> None:
    before = [ask(user) for user in tree]
    assert all(good for good, _ in before)
    for target in (EDGES[1], EDGES[2]):
        record = lab.controller.migrate("tree", target, strategy)
        assert not record.error, record.error
        assert record.outcome is Outcome.DONE
        after = [ask(user) for user in tree]
        assert all(good for good, _ in after), "a byte is not what the program wrote"
        assert all(now[1] > then[1] for now, then in zip(after, before, strict=True)), "every worker runs on"
        before = after
        assert all(good for good, _ in (ask(user) for user in tree)), "also after more churn"


FORKING = f"""
import os, socket, threading
filled = bytearray(os.urandom(1 << 20)) * 40
copy, lock, turns = bytes(filled), threading.Lock(), [0]
def fork():
    while True:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with lock:
            turns[0] += 1
            filled[turns[0] * 4096 % len(filled)] = copy[turns[0] * 4096 % len(filled)]
threading.Thread(target=fork, daemon=True).start()
server = socket.create_server(("0.0.0.0", {FIRST_PORT}))
while True:
    conn, _ = server.accept()
    while conn.recv(64):
        with lock:
            conn.sendall(b"%d %d\\n" % (filled == copy, turns[0]))
"""


@pytest.fixture
def forking(lab: Lab) -> Iterator[socket.socket]:
    with served(lab, "forking", FORKING, 1) as (user,):
        yield user


def test_a_service_that_forks_all_the_time(lab: Lab, forking: socket.socket) -> None:
    """A child that comes into being when the dump has begun is dumped as no other process is."""
    for target in (EDGES[1], EDGES[2], *([EDGES[0], EDGES[1]] if MANY else [])):
        before = ask(forking)[1]
        record = lab.controller.migrate("forking", target, "hybrid")
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        good, now = ask(forking)
        assert good
        while ask(forking)[1] <= max(now, before):
            time.sleep(0.01)
