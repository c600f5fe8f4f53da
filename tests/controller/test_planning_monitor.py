"""The Monitor and the steps from a plan to a decision: values in, values out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace
from planning_people import application, forecast, node, nodes, report, session

from whimbrel.controller.migrations import on_our_clock
from whimbrel.controller.planning.decide import NOTICE_S, Wish, begins_at_s, decision_of, timing_of
from whimbrel.controller.planning.due import LONG_PATIENCE_S, PATIENCE_S, due_of, patience_s
from whimbrel.controller.planning.monitor import UNKNOWN_RATE_BPS, Person, observe, region_of, violates
from whimbrel.controller.planning.outcome import concluded, freeze_lags_s, frozen, start_lag_s
from whimbrel.controller.planning.users import Users
from whimbrel.controller.views import NodeView
from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.edge import Amounts, BaseStation, Observation
from whimbrel.model.migration import MigrationRecord, Outcome, Phase
from whimbrel.model.node import PathStatus, Resources
from whimbrel.model.placement import Assignment
from whimbrel.model.radio import DelayFigures, HandoverRecord, Hears, LinkState
from whimbrel.plan.planners import planner_of
from whimbrel.plan.timing import Order


def seen_of(*people: Person, views: Any = None) -> tuple[Observation, dict[str, str]]:
    observation, left = observe(region_of(views or nodes(), {}), people, (), 100.0)
    assert observation is not None
    return observation, left


def person(user: str = "ue-1", server: str = "edge-1", **changes: Any) -> Person:
    values = {"session": session(user), "application": application(), "report": report(user), "server": server}
    return Person(**(values | changes))


def assigned(planner: str, *people: Person) -> Assignment:
    return planner_of(planner).plan(seen_of(*people)[0]).assignments[0]


# --- what is observed -----------------------------------------------------------------------------------------
def test_nodes_become_servers_base_stations_and_links() -> None:
    observation, left = seen_of(person())
    assert not left
    assert [(one.name, one.cloud) for one in observation.servers] == [
        ("edge-1", False), ("edge-2", False), ("cloud", True),
    ]  # fmt: skip
    assert [one.name for one in observation.base_stations] == ["bs-1", "bs-2"]
    links = {(one.a, one.b): (one.rtt_ms, one.bandwidth_bps) for one in observation.links}
    assert links["bs-1", "edge-1"] == (1.0, 1e8)
    assert links["edge-1", "edge-2"] == (50.0, 1e8)
    assert ("bs-1", "bs-2") not in links
    (user,) = observation.users
    assert (user.base_station, user.server, user.tasks_per_s) == ("bs-1", "edge-1", 10.0)


def test_what_other_services_take_is_no_capacity() -> None:
    others = [("edge-1", Amounts(cpus=0.25, memory_bytes=1e9)), ("edge-1", Amounts(cpus=5, memory_bytes=0))]
    servers = {one.name: one.capacity for one in region_of(nodes(), {}, others).servers}
    assert servers["edge-1"].cpus == 0, "never below nothing"
    assert servers["edge-1"].memory_bytes == (8 << 30) - 1e9
    assert servers["edge-2"].cpus == 1.0


def rates_of(views: Any, carried: dict[frozenset[str], float]) -> dict[frozenset[str], float]:
    links = region_of(views, {}, (), carried).links
    return {frozenset((one.a, one.b)): one.bandwidth_bps for one in links}


def test_a_link_carries_what_migrations_got_and_no_more_than_is_configured() -> None:
    near, far = frozenset(("edge-1", "edge-2")), frozenset(("edge-1", "cloud"))
    rates = rates_of(nodes(), {near: 3e7, far: 9e9})
    assert (rates[near], rates[far]) == (3e7, 1e8)
    silent = [node(one.name, paths=tuple(replace(path, rate_bps=0.0) for path in one.paths)) for one in nodes()]
    rates = rates_of(silent, {near: 3e7})
    assert (rates[near], rates[far]) == (3e7, UNKNOWN_RATE_BPS), "without a configured rate what was seen counts"


def resources_of(view: NodeView) -> Resources:
    assert view.resources is not None
    return view.resources


def test_storage_is_what_is_free_and_what_the_planned_services_hold() -> None:
    views = nodes()
    full = replace(resources_of(views[0]), disk_available_bytes=100, disk_total_bytes=1 << 40)
    views[0] = node("edge-1", resources=full)
    others = [("edge-1", Amounts(cpus=0.0, memory_bytes=0.0, storage_bytes=1e9))]
    (server,) = [one for one in region_of(views, {}, others, {}, {"edge-1": 30.0}).servers if one.name == "edge-1"]
    assert server.capacity.storage_bytes == 130, "what others hold is not free already"


def test_a_service_takes_the_storage_that_crossed_with_it() -> None:
    wants = person(application=application(storage_bytes=5e6), moved_bytes=7e6)
    assert seen_of(wants)[0].users[0].demand.storage_bytes == 7e6
    views = nodes()
    tiny = replace(resources_of(views[1]), disk_available_bytes=6_000_000)
    views[1] = node("edge-2", resources=tiny)
    due = due_of(report(forecast=forecast()), 0.0, ahead=True)
    seen = seen_of(person(due=due, moved_bytes=7e6), views=views)[0]
    assert planner_of("orchestrated").plan(seen).assignments[0].server != "edge-2", "its files would not fit there"


def test_how_a_base_station_is_set_up_comes_from_the_configuration() -> None:
    mine = BaseStation(name="bs-1", max_users=3, floor_dbm=-70.0)
    assert region_of(nodes(), {"bs-1": mine}).base_stations[0] == mine


@pytest.mark.parametrize("trip", [math.nan, -1.0, math.inf, None])
def test_a_round_trip_time_that_cannot_be_is_left_out(trip: float | None) -> None:
    views = [replace(view, paths=tuple(replace(path, round_trip_ms=trip) if {view.name, path.to} == {"bs-1", "edge-1"}
                                       else path for path in view.paths)) for view in nodes()]  # fmt: skip
    pairs = {(link.a, link.b) for link in region_of(views, {}).links}
    assert ("bs-1", "edge-1") not in pairs
    assert ("bs-2", "edge-1") in pairs


@pytest.mark.parametrize(
    "absurd",
    [{"computing_power": math.nan}, {"computing_power": -5.0}, {"computing_power": math.inf},
     {"cpu_capacity": math.inf}, {"cpu_capacity": -1.0}, {"memory_capacity_bytes": -1}],
)  # fmt: skip
def test_a_server_with_an_absurd_number_is_left_out_and_the_others_are_planned_with(absurd: Any) -> None:
    views = nodes()
    resources = views[1].resources
    assert resources is not None
    views[1] = node("edge-2", resources=replace(resources, **absurd))
    region = region_of(views, {}, [("edge-2", Amounts(cpus=0.1, memory_bytes=1.0))])
    assert [one.name for one in region.servers] == ["edge-1", "cloud"]
    ((name, why),) = region.unusable
    assert name == "edge-2"
    assert "edge-2" in why
    observation, left = observe(region, [person(), person("ue-2", "edge-2")], (), 0.0)
    assert observation is not None
    assert [one.name for one in observation.users] == ["ue-1"]
    assert list(left) == ["ue-2"]


def test_a_node_that_does_not_answer_is_not_planned_with() -> None:
    views = [node(view.name, up=False) if view.name in ("edge-1", "bs-2") else view for view in nodes()]
    observation, left = seen_of(person(), person("ue-2", "edge-2"), views=views)
    assert [one.name for one in observation.servers] == ["edge-2", "cloud"]
    assert left == {"ue-1": "the agent of edge-1, where its service is, does not answer"}
    assert [one.name for one in observation.users] == ["ue-2"]


def test_a_base_station_that_reaches_no_server_is_none() -> None:
    views = [replace(view, paths=tuple(path for path in view.paths if "bs-2" not in (view.name, path.to)))
             for view in nodes()]  # fmt: skip
    assert [one.name for one in region_of(views, {}).base_stations] == ["bs-1"]


def test_nobody_answers() -> None:
    observation, left = observe(region_of([node("edge-1", up=False)], {}), [person()], (), 0.0)
    assert observation is None
    assert list(left) == ["ue-1"]


def test_a_user_out_of_coverage_and_one_at_an_unknown_station_are_left_where_they_are() -> None:
    gone = report("ue-1", serving="", state=LinkState.NO_COVERAGE)
    strange = report("ue-2", serving="bs-9")
    observation, left = seen_of(person(report=gone), person("ue-2", report=strange), person("ue-3"))
    assert [one.name for one in observation.users] == ["ue-3"]
    assert "coverage" in left["ue-1"]
    assert "bs-9" in left["ue-2"]


def test_a_path_to_nowhere_is_no_link() -> None:
    views = [replace(view, paths=(*view.paths, PathStatus(to="elsewhere", round_trip_ms=1.0))) for view in nodes()]
    assert region_of(views, {}).links == region_of(nodes(), {}).links


# --- where and when -------------------------------------------------------------------------------------------
def test_a_user_that_stays_is_left_alone() -> None:
    for planner in ("orchestrated", "nearest", "random"):
        one = assigned(planner, person())
        assert not one.migrates, planner
        assert not one.hands_over


def test_a_handover_to_come_takes_the_service_along() -> None:
    due = due_of(report(forecast=forecast()), 0.0, ahead=True)
    one = assigned("orchestrated", person(due=due))
    assert (one.from_base_station, one.base_station, one.from_server, one.server) == (
        "bs-1",
        "bs-2",
        "edge-1",
        "edge-2",
    )


def test_a_user_that_handed_over_by_itself_is_followed_by_the_nearest_planner() -> None:
    moved = person(report=report(serving="bs-2"), session=session(base_station="bs-1"))
    one = assigned("nearest", moved)
    assert (one.base_station, one.server) == ("bs-2", "edge-2")


def test_a_user_under_way_is_counted_where_it_goes() -> None:
    observation, _ = seen_of(person(going=("bs-2", "edge-2")))
    (user,) = observation.users
    assert (user.base_station, user.server) == ("bs-2", "edge-2")


@pytest.mark.parametrize(
    "seen",
    [
        report(forecast=forecast(chance=0.3)),
        report(forecast=forecast(median_s=math.nan)),
        report(forecast=forecast(late_s=-1.0)),
        report(forecast=forecast("bs-1")),
        report(forecast=forecast(), state=LinkState.HANDOVER),
        report(forecast=forecast(), state=LinkState.NO_COVERAGE, serving=""),
        report(),
    ],
)
def test_no_handover_is_due(seen: Any) -> None:
    assert due_of(seen, 0.0, ahead=True) is None


def test_a_handover_is_due_as_forecast_or_at_once() -> None:
    due = due_of(report(forecast=forecast(in_s=3.0)), 1.0, ahead=True)
    assert due is not None
    assert (due.source, due.target, due.in_s, due.latest_s) == ("bs-1", "bs-2", 2.0, 5.0 + LONG_PATIENCE_S)
    assert due_of(report(forecast=forecast()), 0.0, ahead=False) is None
    weak = tuple(Hears(base_station=name, rssi_dbm=-80.0, filtered_dbm=-80.0) for name in ("bs-1", "bs-2"))
    now = due_of(report(wants="bs-2", forecast=forecast(), hears=weak), 0.0, ahead=False)
    assert now is not None
    assert now.wanted
    assert (now.in_s, now.latest_s) == (0.0, PATIENCE_S)


def test_what_is_planned_for_is_what_will_be_heard_then() -> None:
    """bs-2 is too weak to be taken now, and strong at t'; without levels of the forecast it stays as it is."""
    heard = tuple(Hears(base_station=name, rssi_dbm=dbm, filtered_dbm=dbm)
                  for name, dbm in {"bs-1": -50.0, "bs-2": -70.0}.items())  # fmt: skip
    levels = {"bs-1": -80.0, "bs-2": -55.0}
    due = due_of(report(hears=heard, forecast=forecast(levels_dbm=levels)), 0.0, ahead=True)
    (user,) = seen_of(person(report=report(hears=heard), due=due))[0].users
    assert {one.base_station: (one.rssi_dbm, one.then_dbm) for one in user.signals}["bs-2"] == (-70.0, -55.0)
    due = due_of(report(hears=heard, forecast=forecast(levels_dbm={"bs-2": math.nan})), 0.0, ahead=True)
    (user,) = seen_of(person(report=report(hears=heard), due=due))[0].users
    assert {one.base_station: one.then_dbm for one in user.signals}["bs-2"] == -70.0, "what cannot be is left out"


def wish(**changes: Any) -> Wish:
    due = due_of(report(forecast=forecast(in_s=20.0)), 0.0, ahead=True)
    values = {
        "session": session(), "assignment": assigned("orchestrated", person(due=due, memory_bytes=1e7)),
        "serving": "bs-1", "due": due, "preparation_ms": 1000.0, "handover_ms": 500.0,
    }  # fmt: skip
    return Wish(**(values | changes))


def test_a_coordinated_decision_begins_as_late_as_it_can() -> None:
    timing = timing_of(wish(), Order.COORDINATED, 100.0)
    assert timing.handover_at_s == 120.0
    ahead_s = wish().durations.pre_migration_s
    assert ahead_s == pytest.approx(1.0 + 1e7 * 8 / 1e8), "what prepares, and the memory over 100 Mbit/s"
    assert begins_at_s(wish(), timing) == pytest.approx(timing.migration_at_s - 1.1 * ahead_s - NOTICE_S)
    decision = decision_of(wish(), timing, decision_id="d", planner="orchestrated", now_unix_s=100.0)
    assert decision.migrates
    assert decision.hands_over
    assert decision.predicted.interruption_ms == 500, "the migration is hidden behind the handover"
    assert "forecast in 20.0 s" in decision.reason
    assert "edge-2" in decision.reason


@pytest.mark.parametrize("order", [Order.COORDINATED, Order.EARLY, Order.LATE])
def test_a_handover_that_the_planner_chose_itself_waits_for_the_memory(order: Order) -> None:
    own = wish(due=None, patience_s=patience_s(report()))
    timing = timing_of(own, order, 100.0)
    ahead_s = own.durations.pre_migration_s * 1.1
    assert timing.migration_at_s >= 100.0 + ahead_s
    ends_s = timing.handover_at_s + own.durations.handover_s
    if order is Order.COORDINATED:
        assert timing.handover_at_s <= timing.migration_at_s <= ends_s, "the migration lies inside the handover"
        assert timing.interruption_s == pytest.approx(own.durations.handover_s)
    else:
        assert timing.migration_at_s - ends_s < 0.1, "one right after the other, not ten seconds between"
    assert timing_of(wish(due=None, patience_s=0.0), order, 100.0).handover_at_s == 100.0, "who cannot wait does not"


def test_who_hears_its_base_station_well_can_wait_longer() -> None:
    weak = tuple(Hears(base_station=name, rssi_dbm=-80.0, filtered_dbm=-80.0) for name in ("bs-1", "bs-2"))
    assert patience_s(report()) == LONG_PATIENCE_S
    assert patience_s(report(hears=weak)) == PATIENCE_S


def test_an_uncoordinated_one_begins_with_the_handover_and_adds_up() -> None:
    due = due_of(report(wants="bs-2"), 0.0, ahead=False)
    late = wish(due=due)
    timing = timing_of(late, Order.UNCOORDINATED, 100.0)
    assert begins_at_s(late, timing) == timing.handover_at_s == 100.0
    assert timing.interruption_s > 0.5


def test_a_user_that_is_there_already_needs_no_handover() -> None:
    there = wish(serving="bs-2", due=None)
    timing = timing_of(there, Order.UNCOORDINATED, 100.0)
    decision = decision_of(there, timing, decision_id="d", planner="nearest", now_unix_s=100.0)
    assert decision.handover_at_unix_s == 0
    assert decision.from_base_station == "bs-1"
    assert decision.pre_migration_at_unix_s == 100.0


# --- what came of it ------------------------------------------------------------------------------------------
def record(**changes: Any) -> MigrationRecord:
    phases = (("freeze.hold", 3000.0, 50.0), ("freeze.stop", 3050.0, 10.0))
    values: dict[str, Any] = {
        "id": "m", "service": "app-ue-1", "source": "edge-1", "destination": "edge-2", "strategy": "hybrid",
        "outcome": Outcome.DONE, "started_unix_s": 1000.0, "freeze_ms": 150.0,
        "phases": tuple(Phase(name=name, start_ms=at, duration_ms=took) for name, at, took in phases),
    }  # fmt: skip
    return MigrationRecord(**(values | changes))


def handover(**changes: Any) -> HandoverRecord:
    values: dict[str, Any] = {
        "user": "ue-1", "source": "bs-1", "target": "bs-2", "reason": "ordered", "unix_s": 1002.9, "elapsed_s": 1.0,
        "interruption_ms": 500.0, "order": "d",
    }  # fmt: skip
    return HandoverRecord(**(values | changes))


def decision(**changes: Any) -> Decision:
    timing = timing_of(wish(), Order.COORDINATED, 990.0)
    made = decision_of(wish(), timing, decision_id="d", planner="orchestrated", now_unix_s=990.0)
    return replace(made, **changes)


def test_what_was_hidden_behind_the_handover_does_not_count() -> None:
    assert frozen(record()) == (1003.0, 0.2)
    done = concluded(decision(), record(), handover(), now_unix_s=1010.0)
    assert done.state is DecisionState.DONE
    assert done.measured is not None
    assert (done.measured.migration_ms, done.measured.handover_ms) == (200, 500)
    assert done.measured.interruption_ms == 500
    apart = concluded(decision(), record(), handover(unix_s=1005.0), now_unix_s=1010.0)
    assert apart.measured is not None
    assert apart.measured.interruption_ms == 700
    assert done.prediction_error == pytest.approx(abs(decision().predicted.migration_ms - 200) / 200, abs=1e-4)


def test_a_users_clock_may_be_another() -> None:
    done = concluded(decision(), record(), handover(unix_s=4602.9), clock_ahead_s=3600.0, now_unix_s=1010.0)
    assert done.measured is not None
    assert done.measured.interruption_ms == 500


def test_an_agents_clock_may_be_another() -> None:
    told = record(started_unix_s=1000.0, total_ms=4000.0)
    assert on_our_clock(told, 999.99, 1004.1) == 1000.0, "it may be so, and the agent knows best"
    for ahead_s in (1.5, -1.5, 3600.0):
        other = replace(told, started_unix_s=1000.0 + ahead_s)
        assert on_our_clock(other, 999.99, 1004.01) == pytest.approx(1000.0, abs=0.011)


def test_what_failed_was_not_measured() -> None:
    failed = concluded(
        decision(), record(outcome=Outcome.ROLLED_BACK), handover(error="no"), error="both", now_unix_s=1.0
    )
    assert (failed.state, failed.measured, failed.prediction_error) == (DecisionState.FAILED, None, None)


def test_lags_are_learnt_from_what_was() -> None:
    ones = [
        decision(
            pre_migration_at_unix_s=100.0, began_pre_migration_unix_s=100.0 + lag,
            migration_at_unix_s=110.0, began_migration_unix_s=110.0 + lag / 10, freeze_ahead_ms=200.0,
        )
        for lag in (0.5, 0.7, 0.9)
    ]  # fmt: skip
    held_up = replace(ones[0], began_migration_unix_s=119.0)
    assert start_lag_s(ones) == pytest.approx(0.7)
    sooner = [replace(one, from_server="edge-9", freeze_ahead_ms=300.0) for one in ones]
    assert freeze_lags_s([*ones, held_up])[""] == pytest.approx(0.25), "it was told 0.2 s before"
    assert freeze_lags_s([*ones, *sooner])["edge-9"] == pytest.approx(0.35)
    assert freeze_lags_s([held_up]) == {}


def test_who_froze_when_its_memory_was_across_tells_nothing_of_lags() -> None:
    """The one migration that a server had before may have been late for want of its memory."""
    values = {"migration_at_unix_s": 110.0, "began_migration_unix_s": 110.01, "freeze_ahead_ms": 160.0}
    in_time, late = decision(**values), decision(**(values | {"began_migration_unix_s": 110.44}))
    assert freeze_lags_s([in_time, late])[""] == pytest.approx(0.17)
    assert freeze_lags_s([late, late, in_time])[""] == pytest.approx(0.17)


def test_the_agreed_delay() -> None:
    assert violates(50.1, 50.0)
    assert not violates(None, 50.0)
    assert not violates(1e9, 0.0), "nothing was agreed"


def test_what_a_service_took_on_its_last_server_says_nothing_of_the_next() -> None:
    users = Users()
    delay = DelayFigures(requests=2, lost=0, mean_ms=50.0, p50_ms=50.0, max_ms=60.0, processing_ms=40.0)
    users.take("ue-1", report(delay=delay))
    state = users.get("ue-1")
    assert state is not None
    assert (list(state.processing_ms), list(state.delays_ms)) == ([40.0], [50.0])
    users.moved("ue-1")
    users.moved("nobody")
    assert not state.processing_ms
    assert not state.delays_ms
    assert state.delay_ms == 50.0, "what is shown goes on until the next report"
