"""Memory that is hard to carry: over a limited link pages cross coded, a large dirty set crosses beside the
restore. The service finds every byte of its memory as it left it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marks import MANY, thorough
from tests.migrate.conftest import EDGES, Lab, Running
from whimbrel.lab import commands
from whimbrel.migrate.carriers.stream import BESIDE_BYTES
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.model.units import PAGE_BYTES
from whimbrel.network import netns
from whimbrel.workloads.memory.service import expected_digest

SERVICE_PORT = 7301
ZERO_MB, OTHER_MB, BUSY_MB = 24, 12, 32
BANDWIDTH_BPS = 400e6
BUSY_BANDWIDTH_BPS = 200e6

# Memory that was set aside and is all zeros, and noise. Two threads change single bytes, empty pages and fill empty
# ones, and know what must be where; asked, it compares everything.
SPARSE = f"""
import mmap, os, random, socket, threading, time
size = {ZERO_MB + OTHER_MB} << 20
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
copy = bytearray({ZERO_MB} << 20) + bytearray(os.urandom({OTHER_MB} << 20))
area[:] = bytes(copy)
rng, lock, turns = random.Random(3), threading.Lock(), [0]
def churn():
    while True:
        with lock:
            turns[0] += 1
            at = rng.randrange(size)
            page = at // 4096 * 4096
            kind = rng.randrange(10)
            if kind == 0:
                area[page : page + 4096] = copy[page : page + 4096] = bytes(4096)
            elif kind == 1:
                area[page : page + 4096] = copy[page : page + 4096] = os.urandom(4096)
            elif kind == 2:
                area[page] = copy[page]  # dirty, and as it was
            else:
                at = {ZERO_MB << 20} + at % {OTHER_MB << 20}
                area[at] = copy[at] = turns[0] % 251
        time.sleep(0.0005)
"""
# Every page is rewritten all the time, with noise that begins elsewhere each time.
BUSY = f"""
import mmap, os, random, socket, threading, time
size = {BUSY_MB} << 20
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
copy, noise = bytearray(size), os.urandom(2 << 20)
rng, lock, turns = random.Random(5), threading.Lock(), [0]
def churn():
    while True:
        with lock:
            turns[0] += 1
            at = rng.randrange({BUSY_MB}) << 20
            begin = rng.randrange(1 << 20)  # new noise each time would keep a processor to itself
            area[at : at + (1 << 20)] = copy[at : at + (1 << 20)] = noise[begin : begin + (1 << 20)]
        time.sleep(0.002)
"""
# Memory with properties: a reservation of a terabyte of which little is filled, a guard region, pages that stay out of
# core dumps, and (if wanted) such as no child inherits, which nobody foresees without smaps. It looks itself.
ODD = """
import ctypes, mmap, os, socket, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.madvise.argtypes = libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
P, filled = 4096, os.urandom(1 << 20)
def new(size, prot, flags=0x22):
    return libc.mmap(None, size, prot, flags, -1, 0)
wide = new(1 << 40, 0, 0x4022)
part = wide + (1 << 39)
assert libc.mprotect(part, 1 << 20, 3) == 0
ctypes.memmove(part, filled, 1 << 20)
guarded, secret, mine, wiped = new(64 * P, 3), new(8 * P, 3), new(8 * P, 3), new(8 * P, 3)
for at in (guarded, secret, mine, wiped):
    ctypes.memset(at, 1, 8 * P)
assert libc.madvise(wiped, 8 * P, 18) == 0
knows_guards = libc.madvise(guarded + 2 * P, 2 * P, 102) == 0
assert libc.madvise(secret, 8 * P, 16) == 0
if ESSENTIAL:
    assert libc.madvise(mine, 8 * P, 10) == 0
sink = os.open("/dev/shm/sink", os.O_RDWR | os.O_CREAT)
def flags_of(address):
    inside = False
    for line in open("/proc/self/smaps"):
        fields = line.split()
        if "-" in fields[0]:
            start, end = (int(text, 16) for text in fields[0].split("-"))
            inside = start <= address < end
        elif inside and fields[0] == "VmFlags:":
            return fields[1:]
    return []
def wrong():
    if ctypes.string_at(part, 1 << 20) != filled: return "filled part"
    if not flags_of(wide) or not flags_of(wide + (1 << 40) - P): return "reservation"
    if "dd" not in flags_of(secret): return "core dumps"
    if ESSENTIAL and "dc" not in flags_of(mine): return "children"
    if ctypes.string_at(wiped, 8 * P) != bytes([1]) * 8 * P: return "what is wiped in children only"
    child = os.fork()
    if child == 0:
        os._exit(ctypes.string_at(wiped, 8 * P) != bytes(8 * P))
    if os.waitpid(child, 0)[1] != 0: return "a child reads what should be wiped in it"
    if knows_guards and libc.write(sink, guarded + 2 * P, 1) >= 0: return "guard"
    if libc.write(sink, guarded + 4 * P, 1) != 1: return "beside the guard"
    return ""
area, copy, lock, turns = bytearray(1), bytearray(1), threading.Lock(), [0]
def churn():
    while True:
        problem = wrong()
        if problem:
            print("wrong:", problem, flush=True)
        with lock:
            turns[0] += 1
            area[0] = bool(problem)
        time.sleep(0.05)
"""
SERVE = f"""
for _ in range(2):
    threading.Thread(target=churn, daemon=True).start()
server = socket.create_server(("0.0.0.0", {SERVICE_PORT}))
while True:
    conn, _ = server.accept()
    while conn.recv(64):
        with lock:
            conn.sendall(b"%d %d\\n" % (area[:] == bytes(copy), turns[0]))
"""


@contextmanager
def serving(lab: Lab, name: str, program: str) -> Iterator[socket.socket]:
    """A user's connection to the service, which runs on the first edge."""
    argv = ["/usr/bin/python3", "-c", program + SERVE]
    status = lab.controller.run_service(name, lab.image, EDGES[0], args=argv)
    where = commands.node_namespace("ue-1", lab_dir=lab.directory)
    address = status.spec.address.split("/")[0]
    deadline = time.monotonic() + 15
    while True:
        try:
            user = netns.call(where, lambda: socket.create_connection((address, SERVICE_PORT), timeout=20))
            break
        except OSError:
            assert time.monotonic() < deadline, "the service does not answer"
            time.sleep(0.05)
    try:
        yield user
    finally:
        user.close()
        print(lab.controller.logs(name))  # shown by pytest when the test has failed
        lab.controller.remove_service(name)


def ask(user: socket.socket) -> tuple[bool, int]:
    user.sendall(b"?")
    good, turns = user.recv(64).split()
    return good == b"1", int(turns)


def migrate(lab: Lab, service: str, to: str, strategy: str, bandwidth_bps: float) -> MigrationRecord:
    started = lab.controller.start_migration(service, to, strategy, bandwidth_bps=bandwidth_bps)
    record = lab.controller.follow(started.id)
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    return record


def test_memory_of_zeros_and_of_small_changes_arrives_whole(lab: Lab) -> None:
    with serving(lab, "sparse", SPARSE) as sparse:
        cross_and_compare(lab, sparse)


# Besides: a private mapping of a file of noise, page after page of which is overwritten with zeros.
FILE = """
noise = os.urandom(1 << 20)
with open("/srv/noise", "wb") as file:
    file.write(noise)
with open("/srv/noise", "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 1 << 20, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
def overwrite():
    done = 1 << 19
    mapped[:done] = bytes(done)
    while True:
        time.sleep(0.02)
        if done < 1 << 20:
            mapped[done : done + 4096] = bytes(4096)
            done += 4096
        if mapped[:done] != bytes(done) or mapped[done:] != noise[done:]:
            copy.append(0)  # and nothing is as it was
threading.Thread(target=overwrite, daemon=True).start()
"""


@pytest.mark.parametrize("strategy", ["tmpfs", *thorough("diskless", "shared")])
def test_zero_pages_are_left_out_of_layers(lab: Lab, strategy: str) -> None:
    """Also such as were something else in an older layer; not those that hide what a file holds."""
    with serving(lab, "sparse", SPARSE + FILE) as sparse:
        turns = 0
        for target in (EDGES[1], EDGES[2]):
            record = migrate(lab, "sparse", target, strategy, BANDWIDTH_BPS)
            for _ in range(2):  # once more after more of it was touched
                good, now = ask(sparse)
                assert good, "a byte is not what the program wrote"
            assert now > turns
            turns = now
            first = record.rounds[0]
            if target == EDGES[1]:  # later most of the zeros do not even exist any more
                assert first.zero_pages > ZERO_MB * 200
                if strategy != "shared":
                    assert first.bytes_sent < first.raw_bytes - first.zero_pages * PAGE_BYTES * 0.9
            assert record.raw_bytes == sum(turn.dirty_pages for turn in record.rounds) * PAGE_BYTES


def cross_and_compare(lab: Lab, sparse: socket.socket) -> None:
    turns = 0
    for target, strategy in ((EDGES[1], "hybrid"), (EDGES[2], "pre-copy"), (EDGES[1], "stop-and-copy")):
        record = migrate(lab, "sparse", target, strategy, BANDWIDTH_BPS)
        good, now = ask(sparse)
        assert good, "a byte is not what the program wrote"
        assert now > turns
        assert ask(sparse)[0], "also after more of it was touched"
        turns = now
        assert record.raw_bytes == sum(turn.dirty_pages for turn in record.rounds) * PAGE_BYTES
        if strategy == "hybrid":  # later most of the zeros do not even exist any more
            assert record.rounds[0].zero_pages > ZERO_MB * 200
            assert record.bytes_sent < record.raw_bytes * 2 / 3
        if strategy != "stop-and-copy":
            later = " ".join(turn.codec for turn in record.rounds[1:])
            assert "xor+zstd" in later
            assert "unchanged" in later


def test_a_large_dirty_set_crosses_beside_the_restore_and_arrives_whole(lab: Lab) -> None:
    turns = 0
    with serving(lab, "busy", BUSY) as busy:
        for target in (EDGES[1], *([EDGES[2]] if MANY else [])):
            record = migrate(lab, "busy", target, "hybrid", BUSY_BANDWIDTH_BPS)
            assert record.rounds[-1].dirty_pages * PAGE_BYTES >= BESIDE_BYTES, "too little was dirty to try it"
            assert "freeze.beside" in [phase.name for phase in record.phases], "nothing crossed beside the restore"
            for _ in range(3):
                good, now = ask(busy)
                assert good, "a byte is not what the program wrote"
                time.sleep(0.05)
            assert now > turns
            turns = now


@pytest.mark.parametrize("essential", [False, *thorough(True)], ids=("foreseen", "not foreseen"))
def test_memory_keeps_its_properties(lab: Lab, essential: bool) -> None:
    """And a reservation costs the freeze nothing, however large: it used to end it after ten seconds."""
    with serving(lab, "odd", f"ESSENTIAL = {essential}\n{ODD}") as odd:
        for target, strategy in ((EDGES[1], "hybrid"), (EDGES[2], "pre-copy"), (EDGES[0], "hybrid")):
            migrate(lab, "odd", target, strategy, 0.0)
            turns = ask(odd)[1]
            while ask(odd)[1] < turns + 4:
                time.sleep(0.05)
            assert ask(odd)[0], "see the service's log"


@pytest.fixture
def huge_pages_for_everybody() -> Iterator[None]:
    """As most distributions set it."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists():
        pytest.skip("this kernel has no transparent huge pages")
    before = switch.read_text().partition("[")[2].partition("]")[0]
    switch.write_text("always")
    try:
        yield
    finally:
        switch.write_text(before)


def test_huge_pages_hide_no_page_that_is_still_to_come(huge_pages_for_everybody: None, running: Running) -> None:
    """CRIU writes a first page next to ones that come later: it must not become a huge one full of zeros."""
    for target, strategy in ((EDGES[1], "hybrid"), (EDGES[2], "post-copy"), (EDGES[0], "hybrid")):
        migrate(running.lab, running.name, target, strategy, 0.0)
        writes, digest = running.user.ask("digest")
        assert digest == expected_digest(writes, running.memory_mb)


def test_pages_of_a_pattern_shrink_on_a_slow_link(running: Running) -> None:
    """So slow that zstd wins on a busy machine too."""
    record = migrate(running.lab, running.name, EDGES[1], "hybrid", 100e6)
    first = record.rounds[0]
    assert "zstd" in first.codec
    assert first.bytes_sent < first.raw_bytes / 4
    writes, digest = running.user.ask("digest")
    assert digest == expected_digest(writes, running.memory_mb)
