"""Which strategy can work between two nodes, and which is the nearest that can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from whimbrel.model.errors import Refused
from whimbrel.plan.means import Means, lacking, nearest, possible
from whimbrel.plan.strategies import known, strategy_of

MB = 1 << 20
ALL = Means(tracking=True, soft_dirty=True, lazy=True, stage_here_bytes=1000 * MB, stage_there_bytes=1000 * MB)
NO_STORAGE = replace(ALL, shared_problem="edge-2 mounts no shared storage")
NO_TRACKING = replace(ALL, tracking=False)
NOTHING = Means(tracking=False, soft_dirty=False, lazy=False, stage_here_bytes=0, stage_there_bytes=0)


def reason(strategy: str, means: Means, memory_mb: int = 200) -> str:
    return lacking(strategy_of(strategy), means, memory_mb * MB, here="edge-1", there="edge-2")


@pytest.mark.parametrize("strategy", known())
def test_nothing_is_lacking_where_all_is_there(strategy: str) -> None:
    assert reason(strategy, ALL) == ""
    assert reason(strategy, replace(ALL, soft_dirty=False)) == "", "our tracker stands in"


@pytest.mark.parametrize(
    ("strategy", "means", "words", "instead"),
    [
        ("hybrid", replace(ALL, lazy=False), "edge-2 cannot restore lazily", "pre-copy"),
        ("post-copy", replace(ALL, lazy=False), "edge-2 cannot restore lazily", "pre-copy"),
        ("hybrid", NO_TRACKING, "edge-1 cannot track writes by userfaultfd (", "tmpfs"),
        ("stop-and-copy", NO_TRACKING, "edge-1 cannot track writes", "tmpfs"),
        ("diskless", NO_TRACKING, "edge-1 cannot track writes", "tmpfs"),
        ("tmpfs", replace(NO_TRACKING, soft_dirty=False), "and tracks no soft-dirty bits", None),
        ("shared", replace(NO_TRACKING, soft_dirty=False), "and tracks no soft-dirty bits", None),
        ("tmpfs", replace(ALL, stage_here_bytes=200 * MB), "in memory on edge-1, where there is room for", "diskless"),
        ("tmpfs", replace(ALL, stage_there_bytes=200 * MB), "in memory on edge-2, where there is room for", "hybrid"),
        ("diskless", replace(ALL, stage_there_bytes=200 * MB), "in memory on edge-2", "hybrid"),
        ("diskless", replace(ALL, stage_there_bytes=0, lazy=False), "in memory on edge-2", "pre-copy"),
        ("tmpfs", replace(ALL, rsync_here=False), "there is no rsync on edge-1", "hybrid"),
        ("diskless", replace(ALL, rsync_there=False), "there is no rsync on edge-2", "hybrid"),
        ("tmpfs", replace(NO_TRACKING, stage_here_bytes=0), "in memory on edge-1", "shared"),
        ("shared", NO_STORAGE, "edge-2 mounts no shared storage", "diskless"),
        ("shared", replace(NO_STORAGE, stage_there_bytes=0), "edge-2 mounts no shared storage", "hybrid"),
        ("shared", replace(NOTHING, shared_problem="none"), "none", None),
        ("hybrid", NOTHING, "edge-1 cannot track writes", None),
    ],
)
def test_what_cannot_work_is_refused_with_the_nearest_that_can(
    strategy: str, means: Means, words: str, instead: str | None
) -> None:
    assert words in reason(strategy, means)
    other = nearest(strategy_of(strategy), means, 200 * MB)
    assert (other and other.name) == instead
    with pytest.raises(Refused) as refusal:
        possible(strategy_of(strategy), means, 200 * MB, here="edge-1", there="edge-2")
    line = str(refusal.value)
    assert line.startswith(f"{strategy} cannot work here: ")
    assert line.endswith(f"; use --strategy {instead}" if instead else "; no other strategy can: choose another node")
    assert "\n" not in line


def test_auto_takes_the_nearest_and_says_why() -> None:
    asked, ends = strategy_of("hybrid"), {"here": "edge-1", "there": "edge-2"}
    assert possible(asked, ALL, 200 * MB, auto=True, **ends) == (asked, "")
    other, why = possible(asked, replace(ALL, lazy=False), 200 * MB, auto=True, **ends)
    assert (other.name, why) == ("pre-copy", f"hybrid cannot work here: {reason('hybrid', replace(ALL, lazy=False))}")
    with pytest.raises(Refused, match="no other strategy can"):
        possible(asked, NOTHING, 200 * MB, auto=True, **ends)


@pytest.mark.parametrize("strategy", ["diskless", "shared", "hybrid"])
def test_no_room_here_is_no_matter_to_who_stages_nothing_here(strategy: str) -> None:
    assert reason(strategy, replace(ALL, stage_here_bytes=0)) == ""


def test_what_is_named_can_work() -> None:
    for strategy in known().values():
        for means in (ALL, NO_TRACKING, NOTHING, replace(ALL, lazy=False), replace(NO_TRACKING, stage_here_bytes=0)):
            other = nearest(strategy, means, 200 * MB)
            assert other is None or reason(other.name, means) == ""
