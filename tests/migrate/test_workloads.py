"""Each workload moves once, in a real lab, while its client verifies it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from marks import thorough
from tests.migrate.conftest import EDGES, Lab
from whimbrel.bench.trial import Workload, inside, trial
from whimbrel.lab import commands
from whimbrel.model.migration import Outcome
from whimbrel.workloads.builder import build
from whimbrel.workloads.catalogue import CATALOGUE
from whimbrel.workloads.recipe import load_recipe

VARIANTS = Path(__file__).parent / "variants"
# What differs from the recipes, so that the tests stay short.
SMALL = {
    "memory": {"MEMORY_MB": "24", "CONTENTS": "text", "ZERO_SHARE": "0.3"},
    "redis": {"PRELOAD_MB": "24"},
    "redis-aof": {"PRELOAD_MB": "8"},
    "face": {"KEEP_MB": "4"},
    "objects": {"KEEP_MB": "16"},
}


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    ["blank", "redis", "simple", "video-short", *thorough("face", "memory", "objects", "redis-aof", "videoapp-short")],
)
def test_a_workload_moves_and_its_client_finds_nothing_missing(lab: Lab, name: str) -> None:
    folder = VARIANTS / name if (VARIANTS / name).is_dir() else CATALOGUE / name
    workload = Workload(load_recipe(folder, CATALOGUE), SMALL.get(name, {}))
    image = build(workload.recipe)
    user = inside(commands.node_namespace("ue-1", lab_dir=lab.directory).name)
    with trial(
        lab.controller, user, service="load", image=image, node=EDGES[0], workload=workload, quiet_s=0.6
    ) as subject:
        time.sleep(0.3)
        run = subject.move(EDGES[1], "hybrid")
    record, report = run.record, run.report
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    assert (report.lost, report.resets, report.stalls, report.state_ok) == (0, 0, 0, True), report.detail
    assert report.requests == report.answered > 0
    assert report.outage_tcp_ms is not None
    assert (report.outage_udp_ms is not None) is workload.recipe.udp
    assert record.state_ok
