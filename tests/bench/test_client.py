"""The measuring client against services whose faults are known exactly."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from bench_net import Net, Running

from whimbrel.bench.probe import Probe, measured
from whimbrel.model.errors import StepFailed, Unreachable
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.workloads.catalogue import find
from whimbrel.workloads.memory.service import expected_digest


class FaultyService:
    """Speaks the demo service's protocol on the loopback, and does what it is told to do wrong."""

    def __init__(self) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.port: int = self.udp.getsockname()[1]
        self.tcp = socket.create_server(("127.0.0.1", self.port))
        self.drop = self.damage = self.double = self.reset = self.skip = 0
        self.requests = 0
        self.digest = expected_digest(5, 1)
        for target in (self.serve_udp, self.serve_tcp):
            threading.Thread(target=target, daemon=True).start()

    def serve_udp(self) -> None:
        while True:
            data, peer = self.udp.recvfrom(2048)
            if self.drop:
                self.drop -= 1
                continue
            if self.damage:
                self.damage -= 1
                data = data[:-1] + b"?"
            self.udp.sendto(data, peer)
            if self.double:
                self.double -= 1
                self.udp.sendto(data, peer)

    def serve_tcp(self) -> None:
        while True:
            conn, _ = self.tcp.accept()
            threading.Thread(target=self.talk, args=(conn,), daemon=True).start()

    def talk(self, conn: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):  # the client ended
            self.answer(conn)

    def answer(self, conn: socket.socket) -> None:
        while line := conn.recv(64):
            if line == b"digest\n":
                conn.sendall(b"5 %d\n" % self.digest)
                continue
            if self.reset:
                self.reset -= 1
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                conn.close()
                return
            self.requests += 1 + self.skip
            self.skip = 0
            conn.sendall(b"%d 5\n" % self.requests)


def probe_of(port: int, *options: str) -> Probe:
    return Probe(find("memory"), "127.0.0.1", port=port, settings={"MEMORY_MB": "1"}, options=options)


@pytest.fixture
def faulty() -> FaultyService:
    return FaultyService()


@pytest.fixture
def probe(faulty: FaultyService) -> Iterator[Probe]:
    with probe_of(faulty.port) as probe:
        time.sleep(0.2)
        yield probe


def wait_for(condition: object, timeout_s: float = 3.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def open_window(probe: Probe) -> None:
    """What was on its way when the window began is not the window's: a fault shall not meet it."""
    probe.begin()
    time.sleep(0.1)


def test_nothing_happened(probe: Probe) -> None:
    probe.begin()
    time.sleep(0.2)
    window = probe.end()
    assert (window.lost, window.resets, window.stalls) == (0, 0, 0)
    assert (window.detail["damaged"], window.detail["duplicates"]) == (0, 0)
    assert window.detail["requests_udp"] == pytest.approx(500, abs=100)  # 0.2 s and the tail of 0.3 s
    assert window.answered == window.requests > window.detail["requests_udp"]
    assert window.state_ok


def test_every_lost_request_is_counted_and_makes_an_outage(faulty: FaultyService, probe: Probe) -> None:
    open_window(probe)
    faulty.drop = 37
    wait_for(lambda: faulty.drop == 0)
    begin = time.monotonic()
    window = probe.end()
    assert time.monotonic() - begin > 3.0, "late answers are waited for"
    assert window.lost == 37
    assert window.outage_udp_ms is not None
    assert window.outage_udp_ms >= 35
    assert window.resets == 0


def test_windows_are_apart(faulty: FaultyService, probe: Probe) -> None:
    open_window(probe)
    faulty.drop = 5
    wait_for(lambda: faulty.drop == 0)
    assert probe.end().lost == 5
    faulty.drop = 3  # between two windows
    wait_for(lambda: faulty.drop == 0)
    time.sleep(0.05)
    probe.quiet()
    time.sleep(0.1)
    probe.begin()
    time.sleep(0.05)
    window = probe.end()
    assert (window.lost, window.detail["quiet_lost"]) == (0, 0)
    assert window.detail["quiet_ms"] == pytest.approx(100, abs=60)


def test_a_reset_is_counted_and_the_user_goes_on(faulty: FaultyService, probe: Probe) -> None:
    open_window(probe)
    faulty.reset = 2
    wait_for(lambda: faulty.reset == 0)
    time.sleep(0.1)
    window = probe.end()
    assert window.resets == 2
    assert window.detail["requests_tcp"] > 20
    assert window.state_ok


@pytest.mark.parametrize("jump", [1, -1, -100])
def test_a_counter_that_skips_or_goes_back_is_seen(faulty: FaultyService, probe: Probe, jump: int) -> None:
    wait_for(lambda: faulty.requests > 120)
    open_window(probe)
    faulty.skip = jump
    wait_for(lambda: faulty.skip == 0)
    window = probe.end()
    assert not window.detail["counter_ok"]
    assert measured(RECORD, window).state_ok is False


def test_damaged_and_doubled_answers_are_seen(faulty: FaultyService, probe: Probe) -> None:
    open_window(probe)
    faulty.damage = 1
    wait_for(lambda: faulty.damage == 0)
    faulty.double = 4
    wait_for(lambda: faulty.double == 0)
    window = probe.end()
    assert (window.detail["damaged"], window.detail["duplicates"]) == (1, 4)
    assert measured(RECORD, window).state_ok is False


def test_wrong_memory_is_seen(faulty: FaultyService, probe: Probe) -> None:
    open_window(probe)
    faulty.digest ^= 1
    assert not probe.end().state_ok


def test_noise_has_all_its_figures(probe: Probe) -> None:
    noise = probe.noise(2)
    assert noise.windows == 2
    assert noise.lost == 0
    assert noise.delay_udp_ms is not None
    assert 0 < noise.delay_udp_ms.p50 <= noise.delay_udp_ms.p99 <= noise.delay_udp_ms.max
    assert 0 < noise.outage_tcp_ms.max < 1000


def test_every_request_is_told_once(probe: Probe) -> None:
    told: dict[str, list[tuple[int, int, int]]] = {"udp": [], "tcp": []}
    for _ in range(5):
        time.sleep(0.1)
        settled = probe.settled()
        told["udp"] += settled.udp
        told["tcp"] += settled.tcp
    for rows in told.values():
        assert len(rows) > 50
        sent = [row[0] for row in rows]
        assert sent == sorted(set(sent)), "in order, none twice"
        assert all(row[1] > row[0] for row in rows if row[1])
        assert any(row[1] for row in rows)
        assert not any(row[2] for row in rows), "this service does not say how long it works"


def test_a_request_that_is_never_answered_is_told_as_given_up(faulty: FaultyService, probe: Probe) -> None:
    probe.settled()
    faulty.drop = 3
    lost: list[int] = []
    deadline = time.monotonic() + 20
    while len(lost) < 3 and time.monotonic() < deadline:
        lost += [sent for sent, answered, _ in probe.settled().udp if not answered]
        time.sleep(0.1)
    assert len(lost) == 3


def test_a_silent_service_is_one_clear_line() -> None:
    with pytest.raises(Unreachable, match=r"127.0.0.1:9 did not answer by UDP and TCP within 0.3 s"):
        probe_of(9, "--ready-timeout", "0.3").start()


def test_marks_out_of_order_are_refused(probe: Probe) -> None:
    with pytest.raises(Unreachable, match="without `mark start`"):
        probe.end()
    probe.begin()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_client_ends_with_its_input_and_with_its_parent(faulty: FaultyService) -> None:
    for how in ("input", "kill"):
        probe = probe_of(faulty.port)
        probe.start()
        assert probe._process is not None
        loops = children(probe._process.pid)
        assert len(loops) == 3
        if how == "kill":
            probe._process.kill()
            with pytest.raises(StepFailed, match="ended"):
                probe.noise(1)
        probe.stop()
        wait_for(lambda loops=loops: not any(Path(f"/proc/{pid}").exists() for pid in loops))


@pytest.mark.real
def test_a_freeze_of_80_ms_is_measured_as_one(net: Net, plain_service: Running) -> None:
    settings = {"MEMORY_MB": str(plain_service.memory_mb)}
    with Probe(find("memory"), plain_service.host, settings=settings, prefix=net.prefix(net.user)) as probe:
        time.sleep(0.5)
        probe.begin()
        time.sleep(0.1)
        os.kill(plain_service.pid, signal.SIGSTOP)
        begin = time.monotonic()
        time.sleep(0.08)
        os.kill(plain_service.pid, signal.SIGCONT)
        frozen_ms = (time.monotonic() - begin) * 1e3
        time.sleep(0.1)
        window = probe.end()
    assert (window.lost, window.resets, window.state_ok) == (0, 0, True)
    for outage_ms in (window.outage_udp_ms, window.outage_tcp_ms):
        # requests come 1 ms apart, so the longest may have missed the first millisecond; on a loaded
        # machine the service itself may be late to run again
        assert outage_ms is not None
        assert frozen_ms - 5 < outage_ms < frozen_ms + 60


RECORD = MigrationRecord(id="m-1", service="s", source="a", destination="b", strategy="hybrid", outcome=Outcome.DONE)


def test_what_else_the_user_does_is_in_the_report(faulty: FaultyService, tmp_path: Path) -> None:
    """A side of the client that finds something lost, or ends, makes the whole report say so."""
    (tmp_path / "client.py").write_text(SIDED)
    recipe = msgspec.structs.replace(find("memory"), client_file=tmp_path / "client.py")
    with Probe(recipe, "127.0.0.1", port=faulty.port, settings={"MEMORY_MB": "1", "LOSE": "0"}) as probe:
        probe.begin()
        fine = probe.end()
    assert (fine.lost, fine.stalls, fine.state_ok) == (0, 3, True)
    assert fine.detail["busy"]["window_ms"] > 0
    with Probe(recipe, "127.0.0.1", port=faulty.port, settings={"MEMORY_MB": "1", "LOSE": "2"}) as probe:
        probe.begin()
        bad = probe.end()
        assert (bad.lost, bad.state_ok) == (2, False)
        assert measured(RECORD, bad).lost == 2
        assert probe._process is not None
        last = children(probe._process.pid)[-1]
        os.kill(last, signal.SIGKILL)
        wait_for(lambda: ") Z " in Path(f"/proc/{last}/stat").read_text())
        with pytest.raises(Unreachable, match="busy process ended unexpectedly"):
            probe.begin()


SIDED = """
import time
from whimbrel.client.contract import Side
from whimbrel.workloads.memory.client import MemoryUser

class Busy(Side):
    name = "busy"
    def __init__(self, lose):
        self.lose = lose
    def step(self):
        time.sleep(0.01)
    def figures(self, from_ns, to_ns):
        return {"ok": not self.lose, "lost": self.lose, "stalls": 3, "window_ms": (to_ns - from_ns) / 1e6}

class User(MemoryUser):
    def sides(self):
        return (Busy(int(self.place.settings["LOSE"])),)

def user(place):
    return User(place)
"""
