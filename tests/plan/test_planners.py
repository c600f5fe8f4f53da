"""The planners: how they are found, and where each puts whom."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from plan import small_regions as small
from users_parts import install
from whimbrel.model.edge import Observation, User
from whimbrel.model.errors import BadInput
from whimbrel.model.placement import Assignment, Plan, Policy
from whimbrel.plan import planners, strategies
from whimbrel.plan.placement.check import violations
from whimbrel.plan.planners import known, planner_of

ONE_FILE = """
from whimbrel.model.placement import Plan
from whimbrel.plan.planners.interface import Planner
PLANNER = Planner("mine", "nobody moves", "a user", lambda seen, policy, solve: Plan(planner="mine", assignments=()))
"""


def test_the_papers_planners_are_there() -> None:
    assert list(known()) == ["cloud", "nearest", "orchestrated", "random"]
    for planner in known().values():
        assert planner.summary
        assert planner.source.startswith("coordinated")


def test_one_that_nobody_knows_is_named() -> None:
    with pytest.raises(BadInput, match="no planner 'best': choose from cloud, nearest"):
        planner_of("best")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "of_a_user", raising=False)
    importlib.invalidate_caches()
    return tmp_path


@pytest.fixture(autouse=True)
def afresh() -> object:
    """What is found is kept: not from test to test."""
    known.cache_clear()
    strategies.known.cache_clear()
    yield None
    known.cache_clear()
    strategies.known.cache_clear()


def test_a_users_own_planner_is_one_file_and_an_entry_point(installed: Path) -> None:
    install(installed, planners.ENTRY_POINTS, "of_a_user:PLANNER", ONE_FILE)
    assert "mine" in known()
    assert planner_of("mine").plan(small.line()).planner == "mine"


def test_an_entry_point_that_is_no_planner_is_named(installed: Path) -> None:
    install(installed, planners.ENTRY_POINTS, "of_a_user:ONE", "ONE = 1\n")
    with pytest.raises(BadInput, match=r"entry point mine of whimbrel\.planners is no Planner"):
        known()


def test_a_planner_is_no_strategy(installed: Path) -> None:
    install(installed, strategies.ENTRY_POINTS, "of_a_user:PLANNER", ONE_FILE)
    with pytest.raises(BadInput, match=r"whimbrel\.strategies is no Strategy"):
        strategies.known()


def only(planner: str, who: User, at_s: float = 0.0, seed: int = 0) -> Assignment:
    (one,) = planner_of(planner).plan(small.line(who, at_s=at_s), Policy(seed=seed)).assignments
    return one


def walks(at: str = "bs-1", on: str = "edge-1") -> User:
    """To bs-3, far from where the service runs."""
    return small.user("u", at, on, {"bs-1": -80.0, "bs-3": -60.0})


@pytest.mark.parametrize(
    ("planner", "who", "b", "s"),
    [
        ("cloud", walks(), "bs-3", "cloud"),
        ("nearest", walks(), "bs-3", "edge-3"),
        ("orchestrated", walks(), "bs-3", "edge-3"),
        ("cloud", walks(at="", on=""), "bs-3", "cloud"),
        ("nearest", walks(at="", on=""), "bs-3", "edge-3"),
        ("orchestrated", walks(at="", on=""), "bs-3", "edge-3"),
        # no handover, no move: the baselines are asked when the radio hands over
        ("cloud", walks(at="bs-3"), "bs-3", "edge-1"),
        ("nearest", walks(at="bs-3"), "bs-3", "edge-1"),
        ("random", walks(at="bs-3"), "bs-3", "edge-1"),
        ("orchestrated", walks(at="bs-3"), "bs-3", "edge-3"),
    ],
)
def test_where_each_puts_a_user(planner: str, who: User, b: str, s: str) -> None:
    one = only(planner, who)
    assert (one.base_station, one.server) == (b, s)


def test_random_is_the_same_for_the_same_seed_and_moment_and_takes_every_server_in_turn() -> None:
    assert only("random", walks(), at_s=7.0, seed=3) == only("random", walks(), at_s=7.0, seed=3)
    assert {only("random", walks(), at_s=float(turn)).server for turn in range(60)} == {
        "edge-1",
        "edge-2",
        "edge-3",
        "cloud",
    }
    assert {only("random", walks(), seed=seed).server for seed in range(60)} == {"edge-1", "edge-2", "edge-3", "cloud"}


def everybody_to(places: int, cpus: float) -> Observation:
    return small.line(*(small.user(f"u{i}", "", "", {"bs-2": -60.0}) for i in range(6)), places=places, cpus=cpus)


def test_where_the_nearest_is_full_the_next_one_is_taken() -> None:
    seen = everybody_to(places=6, cpus=2)
    plan = planner_of("nearest").plan(seen)
    assert violations(seen, plan) == ()
    assert [one.server for one in plan.assignments] == ["edge-2"] * 2 + ["edge-1"] * 2 + ["edge-3"] * 2


@pytest.mark.parametrize("planner", ["cloud", "nearest", "random", "orchestrated"])
def test_who_finds_no_place_is_told_why(planner: str) -> None:
    seen = everybody_to(places=4, cpus=4)
    plan = planner_of(planner).plan(seen)
    assert violations(seen, plan) == ()
    assert len(plan.left) == plan.left_at_least == 2
    assert all("is full (bs-2)" in one.why for one in plan.left)


def test_a_plan_is_a_value() -> None:
    plan = planner_of("orchestrated").plan(small.line(walks()))
    assert isinstance(plan, Plan)
    assert plan == planner_of("orchestrated").plan(small.line(walks()))
    (one,) = plan.assignments
    assert one.migrates
    assert one.hands_over
