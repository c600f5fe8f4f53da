"""The plain way really moves the service, and cleans up."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from bench_net import USER_ADDRESS, Net

from whimbrel.bench.baseline import CGROUP, NAME, Baseline, Program
from whimbrel.bench.pages import PAGES, PLAIN, held, measure
from whimbrel.bench.probe import measured
from whimbrel.bench.trial import sized
from whimbrel.workloads.builder import build


def leftovers() -> list[str]:
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if "whimbrel-baseline" in line]
    return mounts + [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")]


@pytest.mark.real
def test_checkpoint_copy_restore(net: Net) -> None:
    places = {name: (f"10.78.0.{number}", net.path(name)) for number, name in enumerate(net.nodes, 1)}
    workload = sized(8)
    image = build(workload.recipe)
    program = Program(image.umoci, workload.recipe.command, workload.env, workload.recipe.workdir)
    with Baseline(places, program, "10.78.1.1/16", USER_ADDRESS) as baseline:
        baseline.start(net.nodes[0])
        with workload.probe("10.78.1.1", image, net.prefix(net.user)) as probe:
            for destination in (
                net.nodes[1],
                net.nodes[0],
            ):  # back again: the second lives on what the first left
                time.sleep(0.5)
                probe.begin()
                record = baseline.move(destination, workload.name)
                record = measured(record, probe.end())
                assert record.state_ok
                assert record.resets == 0
                assert record.lost, "nothing holds the packets of the gap"
                assert record.outage_tcp_ms is not None
                assert record.outage_tcp_ms > 20
                assert [phase.name for phase in record.phases] == [
                    "checkpoint",
                    "copy",
                    "restore",
                    "announce",
                ]
                assert record.bytes_sent > 8 << 20
    assert leftovers() == []
    for name in net.nodes:
        links = subprocess.run([*net.prefix(name), "ip", "-o", "link"], capture_output=True, text=True, check=True)
        assert len(links.stdout.splitlines()) == 3, f"only lo, nic0 and wb0 remain, no port of {NAME}"


@pytest.mark.real
@pytest.mark.thorough
def test_pages_benchmark_measures_both_ways(net: Net) -> None:
    here, there = (str(net.path(name)) for name in net.nodes[:2])
    result = measure(here, there, "10.78.0.2", size_bytes=32 << 20, runs=1)
    assert [run["strategy"] for run in result["runs"]] == [PLAIN, PAGES]
    assert result["ratio"] > 0
    assert result["promised"] == held(result["ratio"])


def test_page_streaming_is_held_against_what_is_promised() -> None:
    assert (held(0.6), held(0.599)) == ("PASS", "FAIL: < 60%")
