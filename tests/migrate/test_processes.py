"""Trees of processes with threads, whose memory comes and goes while the rounds run."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

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


@pytest.fixture
def tree(lab: Lab) -> Iterator[list[socket.socket]]:
    status = lab.controller.run_service("tree", lab.image, EDGES[0], args=["/usr/bin/python3", "-c", PROGRAM])
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

    users = [connect(FIRST_PORT + number) for number in range(WORKERS)]
    try:
        yield users
    finally:
        for user in users:
            user.close()
        print(lab.controller.logs("tree"))  # shown by pytest when the test has failed
        lab.controller.remove_service("tree")


def ask(user: socket.socket) -> tuple[bool, int]:
    user.sendall(b"?")
    good, turns = user.recv(64).split()
    return good == b"1", int(turns)


@pytest.mark.parametrize("strategy", sorted(known()))
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
