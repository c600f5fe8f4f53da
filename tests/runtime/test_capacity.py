"""A node's share of the machine, on whatever version of control groups this host has."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from whimbrel.model.errors import Refused
from whimbrel.runtime.capacity import PERIOD_US, cpu_used_s, limit_capacity, node_cgroup, throttled_s
from whimbrel.runtime.cgroups import Cgroup, hierarchies

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")]
SPIN = "while True: pass"


@pytest.fixture
def node() -> Iterator[str]:
    name = f"capacity-{os.getpid()}"
    yield name
    for service in ("one", "two"):
        group = Cgroup(f"/whimbrel/{name}/{service}")
        group.kill_all()
        group.remove()
    node_cgroup(name).remove(with_parents=True)


def spin(node: str, service: str) -> tuple[Cgroup, subprocess.Popen[bytes]]:
    group = Cgroup(f"/whimbrel/{node}/{service}")
    group.create()
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", SPIN])
    group.attach(process.pid)
    return group, process


def setting(group: Cgroup, *names: str) -> str:
    return next((f / name).read_text().strip() for f in group.folders for name in names if (f / name).exists())


def test_all_services_of_a_node_share_its_processors(node: str) -> None:
    """Two that never rest do together no more work than the node has, however long it lasts; and each some."""
    share = 0.3
    limit_capacity(node_cgroup(node), share)
    begin_s = time.monotonic()
    made = [spin(node, service) for service in ("one", "two")]
    whole = node_cgroup(node)
    deadline = time.monotonic() + 30
    while throttled_s(whole) < 0.5 or any((cpu_used_s(group) or 0) < 0.05 for group, _ in made):
        assert time.monotonic() < deadline, "neither is ever kept waiting"
        time.sleep(0.05)
    used_s = cpu_used_s(whole)
    passed_s = time.monotonic() - begin_s
    assert used_s is not None
    # a period that has begun may be used up at once, and each processor hands its time out in slices of 5 ms
    assert used_s <= share * passed_s + share * PERIOD_US / 1e6 + 0.05
    for _, process in made:
        process.kill()
        process.wait()


def test_a_small_share_gets_a_longer_period(node: str) -> None:
    limit_capacity(node_cgroup(node), 0.05)
    period_us = int(setting(node_cgroup(node), "cpu.cfs_period_us", "cpu.max").split()[-1])
    assert period_us == 20_000


def test_memory_is_limited_for_all_together_and_limits_can_be_taken_away(node: str) -> None:
    group = node_cgroup(node)
    limit_capacity(group, 0.5, 256 << 20)
    assert setting(group, "memory.limit_in_bytes", "memory.max") == str(256 << 20)
    limit_capacity(group, None, 0)
    assert int(setting(group, "memory.limit_in_bytes", "memory.max").replace("max", str(1 << 62))) > 1 << 60
    assert setting(group, "cpu.cfs_quota_us", "cpu.max").split()[0] in ("-1", "max")


def test_no_limit_makes_no_group(node: str) -> None:
    limit_capacity(node_cgroup(node), None)
    assert not any(folder.exists() for folder in node_cgroup(node).folders)


def test_a_host_without_the_controller_is_refused(node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("cpu.cfs_quota_us", "cgroup.controllers")
    without = [root for root in hierarchies() if not any((root / file).exists() for file in files)]
    if not without:
        pytest.skip("control groups of version 2 alone: one hierarchy has all controllers")
    monkeypatch.setattr("whimbrel.runtime.cgroups.hierarchies", lambda: tuple(without[:1]))
    with pytest.raises(Refused, match="no control group here has the controller cpu"):
        limit_capacity(node_cgroup(node), 0.5)
    node_cgroup(node).remove(with_parents=True)
