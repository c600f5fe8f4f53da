"""The benchmark of links itself: short loads over a slow link, and what it writes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from whimbrel.bench import link
from whimbrel.bench.shaped import linked_pair
from whimbrel.model.link import LinkShape

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]
SLOW = LinkShape(rate_bps=20e6, delay_ms=20.0)


def test_what_is_lost_and_late_is_told() -> None:
    with linked_pair(SLOW) as ends:
        below = link.crossing(ends, 4e6, 0.5)
        above = link.crossing(ends, 80e6, 1.0)
    assert (below.lost, below.reordered) == (0, 0)
    assert below.sent > 0
    assert below.delay_ms is not None
    assert below.delay_ms["p50"] >= SLOW.delay_ms
    assert above.lost > 0
    assert above.reordered == 0
    assert above.carried_bps < above.offered_bps
    assert above.delay_ms is not None
    assert above.delay_ms["max"] > below.delay_ms["p50"], "a full queue makes it later"


def test_who_is_asked_to_end_leaves_no_namespace() -> None:
    waits = """
import time
from whimbrel.bench.shaped import LinkShape, linked_pair
with linked_pair(LinkShape()):
    print(flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        spaces = list(Path("/run/netns").glob(f"whimbrel-bench-{process.pid}-*"))
        process.terminate()
    assert len(spaces) == 2
    assert not any(space.exists() for space in spaces)


@pytest.mark.thorough
def test_the_document_holds_asked_against_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDLE", "BELOW", "ABOVE", "STREAM"):
        load = getattr(link, name)
        monkeypatch.setattr(link, name, link.Load(load.name, load.share, load.bps, 0.6))
    text = io.StringIO()
    document = link.run(Console(file=text, width=200), cases=(SLOW,))
    assert document["parameters"]["links"] == [msgspec.to_builtins(SLOW)]
    (entry,) = document["summary"]
    assert (entry["link"], entry["asked_rate_bps"], entry["asked_delay_ms"]) == ("20 Mbit/s, 20 ms", 20e6, 20.0)
    assert entry["delay_ms"]["p50"] >= 20.0
    assert entry["delay_off"] == entry["delay_ms"]["p50"] / 20.0 - 1
    assert (entry["lost"], entry["reordered"]) == (0, 0)
    assert entry["rate_bps"] > 0
    assert entry["stream_bps"] > 0
    assert [run["load"] for run in document["runs"]] == ["idle", "below the rate", "above the rate", "TCP stream"]
    assert "20 Mbit/s, 20 ms" in text.getvalue()
