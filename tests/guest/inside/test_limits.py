"""Limits under control groups of version 2, as they are carried for engines that leave them to CRIU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from whimbrel.runtime.cgroups import Cgroup, hierarchies
from whimbrel.runtime.limits import apply_limits, read_limits

pytestmark = pytest.mark.inside

LIMITS = {"memory.max": str(64 << 20), "memory.high": str(48 << 20), "pids.max": "50"}


@pytest.fixture
def groups() -> Iterator[tuple[Cgroup, Cgroup]]:
    (top,) = hierarchies()
    parent = Cgroup("/limits-test")
    parent.create()
    for folder in (top, *parent.folders):
        (folder / "cgroup.subtree_control").write_text("+memory +pids")
    pair = Cgroup("/limits-test/here"), Cgroup("/limits-test/there")
    for group in pair:
        group.create()
    try:
        yield pair
    finally:
        parent.remove()


def test_limits_are_carried(groups: tuple[Cgroup, Cgroup]) -> None:
    here, there = groups
    for name, value in LIMITS.items():
        (here.folders[0] / name).write_text(value)
    assert read_limits(there)["memory.max"] == "max"
    apply_limits(there, read_limits(here))
    assert read_limits(there) == read_limits(here)
    assert LIMITS.items() <= read_limits(there).items()
