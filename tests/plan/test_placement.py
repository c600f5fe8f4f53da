"""The optimal placement against all possibilities, against a checker of its own, and what it does with noise."""

from __future__ import annotations

import json
import math
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from marks import MANY
from plan import small_regions as small
from whimbrel.model.edge import Amounts, Observation, User
from whimbrel.model.errors import BadInput, StepFailed
from whimbrel.model.placement import Plan, Policy, figures_of
from whimbrel.plan.made import region
from whimbrel.plan.placement import lagrange
from whimbrel.plan.placement.check import violations
from whimbrel.plan.placement.plans import plan_of
from whimbrel.plan.placement.problem import formulate
from whimbrel.plan.planners import planner_of
from whimbrel.solvers import cbc, chosen, highs
from whimbrel.solvers.timed import within

PLAIN = Policy(horizon_s=10, deadband=0, hysteresis_db=0)
ORCHESTRATED = planner_of("orchestrated")
few = settings(max_examples=60 if MANY else 25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(small.regions())
def test_the_exact_solver_finds_what_trying_everything_finds(seen: Observation) -> None:
    plan = ORCHESTRATED.plan(seen, PLAIN, highs.solver(gap=0))
    fewest, most = small.best(seen, PLAIN.horizon_s)
    assert len(plan.left) == plan.left_at_least == fewest
    constant = small.reference(seen, PLAIN.horizon_s, {one.user for one in plan.left})
    taken = sum(
        options[one.base_station, one.server]
        for options, one in zip(
            (
                small.profits(seen, PLAIN.horizon_s)[[u.name for u in seen.users].index(one.user)]
                for one in plan.assignments
            ),
            plan.assignments,
            strict=True,
        )
    )
    if not fewest:
        assert taken == pytest.approx(most, rel=1e-6, abs=1e-3)
    assert plan.profit_ms == pytest.approx(taken + constant, rel=1e-6, abs=1e-3)
    assert plan.gap < 1e-4


@pytest.mark.parametrize("planner", ["orchestrated", "cloud", "random", "nearest"])
@few
@given(seen=small.regions(most_users=7))
def test_every_plan_keeps_every_constraint(planner: str, seen: Observation) -> None:
    plan = planner_of(planner).plan(seen, PLAIN)
    assert violations(seen, plan) == ()
    assert len(plan.assignments) + len(plan.left) == len(seen.users)


@few
@given(small.regions(most_users=6))
def test_what_the_search_proves_holds(seen: Observation) -> None:
    exact = ORCHESTRATED.plan(seen, PLAIN, highs.solver(gap=0))
    for solve in (lagrange.solve, within(0.05)):
        plan = ORCHESTRATED.plan(seen, PLAIN, solve)
        assert plan.left_at_least <= len(exact.left) <= len(plan.left)
        assert plan.profit_ms <= plan.bound_ms
        # a bound holds for all that leave no more
        assert exact.profit_ms <= plan.bound_ms + 1e-3 + 1e-6 * abs(exact.profit_ms)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tightness", [0.6, 0.9])
def test_the_search_comes_near_the_optimum(tightness: float, seed: int) -> None:
    seen = region(users=150, servers=6, stations=6, tightness=tightness, attached=False, seed=seed)
    problem = formulate(seen, Policy())
    found = lagrange.solve(problem)
    assert violations(seen, plan_of(problem, found, "x")) == ()
    assert found.left == 0
    assert found.bound - found.profit <= 0.02 * found.profit


def test_where_not_all_find_a_place_it_says_who_is_left_and_why() -> None:
    seen = region(users=60, servers=4, stations=4, tightness=1.3, settled=False, attached=False)
    plan = ORCHESTRATED.plan(seen, Policy(), within(1.0))
    assert violations(seen, plan) == ()
    assert plan.left
    assert 0 < plan.left_at_least <= len(plan.left)
    for one in plan.left:
        assert "has room" in one.why
        assert one.why.endswith("is not deployed")


@pytest.mark.parametrize(
    ("who", "why"),
    [
        (small.user("u", "bs-1", "edge-1", {}), "hears no base station above its floor, stays on edge-1"),
        (small.user("u", "bs-1", "edge-1", {"bs-1": -95.0}), "hears no base station above its floor, stays on edge-1"),
        (
            small.user("u", "", "", {"bs-1": -60.0}, demand=Amounts(cpus=99, memory_bytes=1)),
            "its service fits on no server, though it were empty (CPU is short), is not deployed",
        ),
    ],
)
def test_the_reason_for_one_who_has_no_option(who: User, why: str) -> None:
    plan = ORCHESTRATED.plan(small.line(who))
    assert [one.why for one in plan.left] == [why]
    assert plan.left_at_least == 1


def test_full_base_stations_are_a_reason() -> None:
    users = [small.user(f"u{i}", "", "", {"bs-1": -60.0}) for i in range(3)]
    plan = ORCHESTRATED.plan(small.line(*users, places=2))
    assert [one.why for one in plan.left] == ["every base station that it hears is full (bs-1), is not deployed"]
    assert plan.left_at_least == 1


def test_a_server_that_lost_capacity_gets_nobody_and_gives_some_away() -> None:
    """Two fit no longer: one moves, though he gains nothing; a third does not come, though he would."""
    heavy = Amounts(cpus=3, memory_bytes=1e9)
    users = [small.user(f"u{i}", "bs-2", "edge-2", {"bs-2": -60.0}, demand=heavy) for i in range(2)]
    third = small.user("u2", "bs-2", "edge-1", {"bs-2": -60.0}, demand=Amounts(cpus=0.5, memory_bytes=1e8))
    seen = small.line(*users, third)
    plan = ORCHESTRATED.plan(seen, Policy(horizon_s=100), highs.solver())
    assert violations(seen, plan) == ()
    assert not plan.left
    assert sum(one.migrates for one in plan.assignments[:2]) == 1
    assert plan.assignments[2].server != "edge-2"


def moving(rssi_1: float, rssi_2: float, on: str = "edge-1", at: str = "bs-1", at_s: float = 0.0) -> Observation:
    return small.line(small.user("u", at, on, {"bs-1": rssi_1, "bs-2": rssi_2}), at_s=at_s)


@pytest.mark.parametrize(
    ("seen", "policy", "b", "s"),
    [
        (moving(-60, -75), Policy(), "bs-1", "edge-1"),
        (moving(-75, -60), Policy(), "bs-2", "edge-2"),
        (moving(-66, -64), Policy(), "bs-1", "edge-1"),  # within the hysteresis
        (moving(-85, -79), Policy(), "bs-2", "edge-2"),  # the old one is below its floor
        (moving(-75, -60), Policy(horizon_s=0), "bs-1", "edge-1"),  # nothing could pay off
        (moving(-85, -60), Policy(horizon_s=0), "bs-2", "edge-1"),  # hands over because it must, and moves nothing
        (moving(-60, -75, on="edge-2"), Policy(), "bs-1", "edge-1"),  # the container follows the user
        (moving(-60, -75, on="edge-2"), Policy(downtime_weight=1e6), "bs-1", "edge-2"),
    ],
)
def test_where_a_user_goes(seen: Observation, policy: Policy, b: str, s: str) -> None:
    (one,) = ORCHESTRATED.plan(seen, policy).assignments
    assert (one.base_station, one.server) == (b, s)


def test_gain_and_cost_are_those_of_the_formulas() -> None:
    seen = moving(-75, -60)
    plan = ORCHESTRATED.plan(seen, Policy(horizon_s=30))
    (one,) = plan.assignments
    # 19.5 and 65 Mbit/s by the table; nothing is computed faster; both base stations 1 ms from their edge
    before, after = 20 + 50_000 * 8 / 26e6 * 1000 + 1, 20 + 50_000 * 8 / 65e6 * 1000 + 1
    before = 20 + 50_000 * 8 / 19.5e6 * 1000 + 1 if small.rate_bps("802.11n-20MHz", -75) == 19.5e6 else before
    assert one.delay.total_ms == pytest.approx(after)
    assert plan.gain_ms == pytest.approx(2 * 30 * (before - after))
    # the delta takes longer than the 100 ms of the two round trips beside it; the hold's comes before
    freeze = 20 + 1e-4 * 1e8 / 1000 + 50 + 2e6 * 8e3 / 100e6 + 20 + 5e-5 * 1e8 / 1000
    assert one.migration_ms == pytest.approx(freeze)
    assert one.pre_migration_ms == pytest.approx(1e8 * 8e3 / 100e6)
    assert plan.cost_ms == pytest.approx(max(freeze, 500.0))


def test_noise_moves_nobody() -> None:
    """Half-way between two base stations, everything measured 200 times with noise: shadowing of 1.5 dB (what a filter
    leaves), round-trip times, processing times and rates by 5 %."""
    rng = random.Random(1)
    at, on, moves = "bs-1", "edge-1", 0
    for turn in range(200):
        seen = moving(-65 + rng.gauss(0, 1.5) / 1.5, -65 + rng.gauss(0, 1.5) / 1.5, on, at, at_s=float(turn))
        one = seen.users[0]
        noisy = msgspec.structs.replace(
            one, processing_ms=20 * rng.uniform(0.95, 1.05), tasks_per_s=rng.uniform(1.9, 2.1)
        )
        links = tuple(
            msgspec.structs.replace(link, rtt_ms=link.rtt_ms * rng.uniform(0.95, 1.05)) for link in seen.links
        )
        (done,) = ORCHESTRATED.plan(msgspec.structs.replace(seen, users=(noisy,), links=links)).assignments
        moves += (done.base_station, done.server) != (at, on)
        at, on = done.base_station, done.server
    assert moves == 0


def test_a_user_who_walks_past_moves_once_for_each_base_station() -> None:
    at, on, path = "bs-1", "edge-1", []
    rng = random.Random(2)
    for step in range(200):
        x = step / 199 * 200
        heard = {f"bs-{i}": -48 - 0.28 * abs(x - (i - 1) * 100) + rng.gauss(0, 1) for i in (1, 2, 3)}
        (done,) = ORCHESTRATED.plan(small.line(small.user("u", at, on, heard))).assignments
        at, on = done.base_station, done.server
        if not path or path[-1] != (at, on):
            path.append((at, on))
    assert path == [("bs-1", "edge-1"), ("bs-2", "edge-2"), ("bs-3", "edge-3")]


def test_the_pure_solver_gives_the_same_answer_again() -> None:
    seen = region(users=80, servers=5, stations=5, tightness=0.95, attached=False)
    first, second = (lagrange.solve(formulate(seen, Policy())) for _ in range(2))
    assert first.choice.tolist() == second.choice.tolist()
    assert (first.profit, first.bound) == (second.profit, second.bound)


class Clock:
    """Moves on by so much each time somebody looks."""

    def __init__(self, tick_s: float) -> None:
        self.now_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


@pytest.mark.parametrize("tick_s", [0.01, 0.2, 5.0])
def test_whatever_the_deadline_there_is_a_plan(tick_s: float) -> None:
    seen = region(users=120, servers=6, stations=6, tightness=0.9, attached=False)
    clock = Clock(tick_s)
    plan = ORCHESTRATED.plan(seen, Policy(), within(1.0, clock=clock))
    assert violations(seen, plan) == ()
    assert plan.profit_ms <= plan.bound_ms
    assert clock.now_s <= 1.0 + 5 * tick_s, "nothing was begun once it was late"


def test_more_time_never_gives_less() -> None:
    problem = formulate(region(users=120, servers=6, stations=6, tightness=0.9, attached=False), Policy())
    profits, bounds = [], []
    for step in lagrange.steps_of(problem):
        profits.append(step.answer.profit)
        bounds.append(step.answer.bound)
        if step.number == 120:
            break
    assert profits == sorted(profits)
    assert all(later <= before + 1e-6 for before, later in pairwise(bounds))


def _tampered(plan: Plan, **change: str) -> Plan:
    first = plan.assignments[0]
    return msgspec.structs.replace(plan, assignments=(msgspec.structs.replace(first, **change), *plan.assignments[1:]))


def test_the_checker_sees_what_is_wrong() -> None:
    users = [small.user(f"u{i}", "bs-1", "edge-1", {"bs-1": -60.0, "bs-2": -90.0}) for i in range(3)]
    seen = small.line(*users, cpus=4, places=3)
    plan = ORCHESTRATED.plan(seen)
    assert violations(seen, plan) == ()
    assert "(3d)" in violations(seen, _tampered(plan, base_station="bs-2"))[0]
    assert "(3d)" in violations(seen, _tampered(plan, base_station="bs-3"))[0]
    assert "no server" in violations(seen, _tampered(plan, server="edge-9"))[0]
    assert "no base station" in violations(seen, _tampered(plan, base_station="bs-9"))[0]
    twice = msgspec.structs.replace(plan, assignments=(*plan.assignments, plan.assignments[0]))
    assert any("2 times (3b)" in line for line in violations(seen, twice))
    assert any("0 times (3b)" in line for line in violations(seen, msgspec.structs.replace(plan, assignments=())))
    crowded = small.line(*users, places=2)
    assert any("(3e)" in line for line in violations(crowded, plan))
    full = small.line(*(msgspec.structs.replace(one, server="edge-2") for one in users), cpus=2)
    assert any("(3c)" in line for line in violations(full, plan))


@pytest.mark.skipif(not cbc.installed(), reason="needs the program cbc (coinor-cbc)")
@pytest.mark.parametrize(("tightness", "settled"), [(0.7, True), (1.2, False)])
def test_cbc_finds_what_highs_finds(tightness: float, settled: bool) -> None:
    problem = formulate(region(users=14, servers=3, stations=3, tightness=tightness, settled=settled), Policy())
    one, other = highs.solver(gap=1e-6)(problem), cbc.solver(gap=1e-6)(problem)
    assert (one.left, one.left_at_least) == (other.left, other.left_at_least)
    assert one.profit == pytest.approx(other.profit, rel=1e-4)
    assert other.by == "cbc"
    assert other.bound == pytest.approx(other.profit, rel=1e-4)


CBC = pytest.param("cbc", marks=pytest.mark.skipif(not cbc.installed(), reason="needs the program cbc (coinor-cbc)"))


@pytest.mark.parametrize("name", ["timed", "highs", CBC])
def test_the_solver_is_chosen_by_its_name(name: str) -> None:
    seen = region(users=14, servers=3, stations=3, tightness=0.7)
    plan = ORCHESTRATED.plan(seen, Policy(), chosen.within(name, 5.0))
    assert violations(seen, plan) == ()
    assert plan.gap <= 1e-3
    assert plan.by == name or name == "timed"


@pytest.mark.parametrize("name", ["highs", CBC])
@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_who_has_no_time_for_the_whole_falls_back(name: str, seconds: float) -> None:
    seen = region(users=200, servers=10, stations=10, tightness=0.93, attached=False)
    plan = ORCHESTRATED.plan(seen, Policy(), chosen.within(name, seconds))
    assert violations(seen, plan) == ()
    assert seconds or plan.by != name
    assert plan.profit_ms <= plan.bound_ms


def test_a_solver_that_there_is_not_is_named() -> None:
    with pytest.raises(BadInput, match="there is no solver 'best': choose from timed, highs, cbc"):
        chosen.check("best")


def test_cbc_counts_time_as_it_passes_and_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name that never looks at the clock."""
    program = tmp_path / "cbc"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\necho $$ > {tmp_path}/pid\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    problem = formulate(region(users=14, servers=3, stations=3, tightness=0.7), Policy())
    with pytest.raises(StepFailed, match="found no answer within"):
        cbc.solver(seconds=0.2)(problem)
    assert "-timeMode elapsed -sec 0." in (tmp_path / "said").read_text()
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists(), "it is ended"


def test_all_parts_of_the_whole_have_the_time_together() -> None:
    """Of 9 s the first part takes 4, what it leaves is for counting and for the profit."""
    given: list[float] = []
    now_s = [0.0]

    def slow(made: highs.Program, seconds: float, gap: float) -> Any:
        given.append(seconds)
        now_s[0] += 4.0 if len(given) == 1 else 1.0
        return (None, True, -math.inf) if len(given) == 1 else highs.run(made, 10.0, gap)

    problem = formulate(region(users=14, servers=3, stations=3, tightness=1.2, settled=False), Policy())
    highs.solver(seconds=9.0, by=slow, clock=lambda: now_s[0])(problem)
    assert given[:1] == [9.0] or len(given) == 2
    assert sum(given[1:]) <= 9.0


def test_the_time_for_making_the_problem_counts() -> None:
    """The caller began 0.9 s ago, of 1 s."""
    seen = region(users=120, servers=6, stations=6, tightness=0.9, attached=False)
    clock = Clock(0.0)
    clock.now_s = 0.9
    early = within(1.0, clock=clock, began_s=0.0)
    clock.tick_s = 0.01
    plan = ORCHESTRATED.plan(seen, Policy(), early)
    assert violations(seen, plan) == ()
    assert clock.now_s <= 1.0 + 5 * clock.tick_s


def test_without_overlap_a_move_costs_both_downtimes() -> None:
    seen = moving(-90.0, -50.0)
    for overlaps in (True, False):
        problem = formulate(seen, Policy(hysteresis_db=0, overlaps=overlaps))
        migration_ms, handover_ms = problem.migration_ms[0, 1, 1], seen.users[0].handover_ms
        assert migration_ms > 0
        expected_ms = max(migration_ms, handover_ms) if overlaps else migration_ms + handover_ms
        assert problem.cost[0, 1, 1] == pytest.approx(expected_ms)


def test_what_a_handover_does_not_hide_follows_it() -> None:
    seen = moving(-90.0, -50.0)
    whole = formulate(seen, Policy(hysteresis_db=0))
    away_ms, whole_ms = seen.users[0].handover_ms, whole.migration_ms[0, 1, 1]
    long = msgspec.structs.replace(seen.users[0].sizes, delta_bytes=5e7)
    seen = msgspec.structs.replace(seen, users=(msgspec.structs.replace(seen.users[0], sizes=long),))
    hidden, waits = (formulate(seen, Policy(hysteresis_db=0, follows=follows)) for follows in (True, False))
    assert waits.migration_ms[0, 1, 1] > away_ms > whole_ms
    assert hidden.migration_ms[0, 1, 1] == away_ms * 0.9, "the paper's margin"
    assert hidden.cost[0, 1, 1] == away_ms
    assert hidden.migration_ms[0, 0, 1] == waits.migration_ms[0, 0, 1], "without a handover there is nothing to hide it"


def test_the_dead_band_is_not_for_who_is_worse_off_than_agreed() -> None:
    """A tenth of the delay is to be saved; another server saves less."""
    policy = Policy(deadband=0.9, hysteresis_db=0)
    for violated in (False, True):
        seen = moving(-50.0, -90.0, on="edge-2")
        user = msgspec.structs.replace(seen.users[0], violated=violated)
        plan = ORCHESTRATED.plan(msgspec.structs.replace(seen, users=(user,)), policy)
        assert plan.assignments[0].migrates == violated


def test_a_plan_in_figures_says_how_far_from_optimal_it_may_be() -> None:
    seen = region(users=14, servers=3, stations=3, tightness=0.7)
    figures = figures_of(ORCHESTRATED.plan(seen), made_unix_s=1.0, took_ms=2.0)
    assert figures.gap is not None
    assert figures.profit_ms + figures.gap * figures.profit_ms == pytest.approx(figures.bound_ms)
    assert (figures.users, figures.left) == (14, 0)
    assert json.loads(msgspec.json.encode(figures))["gap"] == figures.gap
    nothing = figures_of(planner_of("nearest").plan(seen), made_unix_s=1.0, took_ms=2.0)
    assert (nothing.gap, nothing.bound_ms) == (None, None), "a baseline proves nothing"
