"""`whimbrel ue` in real namespaces: it walks, the lab's radio moves it, its application goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from network.network_region import SERVICE, TOPOLOGY, Region
from whimbrel.lab import build, topology
from whimbrel.model.radio import HandoverRecord, RequestTimes, UserEvent, UserNote, UserReport
from whimbrel.network import netns
from whimbrel.network.overlay import wait_until
from whimbrel.workloads import catalogue

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]
SHIPPED = Path(topology.__file__).parent / "topologies"
RADIO = """
[radio]
base_stations = [{ name = "gw-1", x_m = 0.0, y_m = 0.0 }, { name = "gw-2", x_m = 50.0, y_m = 0.0 }]
path_loss = { shadowing_db = 1.0 }
[[radio.users]]
name = "ue-1"
speed_m_per_s = 10.0
course = "there-and-back"
waypoints = [{ x_m = 0.0, y_m = 5.0 }, { x_m = 50.0, y_m = 5.0 }]
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Region]:
    """The workload *simple* on edge-2, without a container: this is about the user."""
    region = None
    process = None
    try:
        region = Region()
        region.begin(tmp_path)
        info = region.create("edge-2")
        region.ports["edge-2"].open(SERVICE)
        program = catalogue.find("simple").folder / "service.py"
        process = netns.call(info.netns_path, lambda: subprocess.Popen([sys.executable, str(program)]))
        yield region
    finally:
        if process is not None:
            process.kill()
            process.wait()
        if region is not None:
            region.end()
            region.close()
        build.remove(TOPOLOGY)


def start(tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    file = tmp_path / "region.toml"
    file.write_text(f'prefix = "{TOPOLOGY.prefix}"\n{(SHIPPED / "default.toml").read_text()}{RADIO}')
    argv = [sys.executable, "-m", "whimbrel", "ue", "--topology", str(file), *options]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def read(out: Path) -> list[UserEvent]:
    whole = out.read_bytes().rpartition(b"\n")[0] if out.exists() else b""
    return [msgspec.json.decode(line, type=UserEvent) for line in whole.splitlines()]


def handovers(out: Path) -> list[HandoverRecord]:
    return [event for event in read(out) if isinstance(event, HandoverRecord)]


def test_a_user_walks_and_its_application_goes_on(service: Region, tmp_path: Path, record_property) -> None:
    out = tmp_path / "ue.jsonl"
    process = start(tmp_path, "--workload", "simple", "--address", "10.77.1.1", "--out", str(out))
    try:
        assert wait_until(lambda: len(handovers(out)) >= 2 or process.poll() is not None, 60), process.poll()
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, b"")
    events = read(out)
    done = handovers(out)
    assert [(each.source, each.target) for each in done[:2]] == [("gw-1", "gw-2"), ("gw-2", "gw-1")]
    batches = [event for event in events if isinstance(event, RequestTimes)]
    sent = [when for batch in batches for when in batch.sent_unix_s]
    delays = [delay for batch in batches for delay in batch.delays_ms]
    assert len(sent) > 100
    assert sent == sorted(sent), "every request once, in order"
    assert None not in delays, "one connection all the way: a reset would lose the request under way"
    for each in done[:2]:
        assert each.interruption_ms >= 500
        # the request that was under way, or fell into the gap, waited for its end
        waited = [delay for when, delay in zip(sent, delays, strict=True) if abs(when - each.unix_s) < 0.5]
        assert max(waited) > 400
        record_property("longest_wait_ms", max(waited))
        print(f"interruption {each.interruption_ms:.1f} ms, longest request {max(waited):.1f} ms")
    reports = [event for event in events if isinstance(event, UserReport)]
    assert any(report.delay is not None and report.delay.p50_ms for report in reports)
    kinds = {event.kind for event in events if isinstance(event, UserNote)}
    assert kinds == {"begin", "attached", "end"}


def test_a_user_obeys_orders_from_its_standard_input(service: Region, tmp_path: Path) -> None:
    out = tmp_path / "ue.jsonl"
    process = start(tmp_path, "--decide", "network", "--orders", "--interruption", "100ms", "--out", str(out))
    try:
        assert wait_until(lambda: any(isinstance(event, UserReport) for event in read(out)), 30)
        assert process.stdin is not None
        process.stdin.write(b'{"event": "order", "user": "ue-1", "target": "gw-2", "id": "x"}\n')
        process.stdin.flush()
        assert wait_until(lambda: bool(handovers(out)), 10)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    (done,) = handovers(out)
    assert (done.target, done.order, done.error) == ("gw-2", "x", "")
    assert 100 <= done.interruption_ms < 500
