"""Clocks that are set or wrong, and what users tell that cannot be: users, and decisions under way."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planning_people import report

from whimbrel.controller.database import parse_database
from whimbrel.controller.handovers.answers import Answers
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.planning import clock
from whimbrel.controller.planning.book import PlanBook
from whimbrel.controller.planning.clock import JumpWatch, Timeline
from whimbrel.controller.planning.moves import Moves
from whimbrel.controller.planning.users import Users, UserState
from whimbrel.controller.region import Region
from whimbrel.controller.services import Services
from whimbrel.controller.store import Database, MigrationStore
from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.edge import MOST_DBM
from whimbrel.model.radio import HandoverRecord, Hears

HOUR_S = 3600.0


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the wall clock by so many seconds, for who waits; time passes as it does."""

    def by(seconds: float) -> None:
        skewed = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
        monkeypatch.setattr(clock, "time", skewed)

    return by


class Told:
    """What users tell, and what was complained of."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.users = Users(on_complaint=lambda text, facts: self.lines.append((text, facts)))

    def report(self, ahead_s: float = 0.0, late_s: float = 0.0, **changes: Any) -> UserState:
        values = {"unix_s": time.time() + ahead_s - late_s} | changes
        self.users.take("ue-1", report(**values))
        return self.state

    @property
    def state(self) -> UserState:
        state = self.users.get("ue-1")
        assert state is not None
        return state

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.lines]


@pytest.fixture
def told() -> Told:
    return Told()


def handover(**changes: Any) -> HandoverRecord:
    values: dict[str, Any] = {
        "user": "ue-1", "source": "bs-1", "target": "bs-2", "reason": "ordered", "unix_s": time.time(),
        "elapsed_s": 1.0, "interruption_ms": 500.0, "order": "d",
    }  # fmt: skip
    return HandoverRecord(**(values | changes))


# --- the controller's clock -----------------------------------------------------------------------------------
@pytest.mark.parametrize("set_by_s", [-HOUR_S, HOUR_S])
async def test_a_clock_that_is_set_moves_no_time_of_a_decision(
    set_clock: Callable[[float], None], set_by_s: float
) -> None:
    line = Timeline()
    due_unix_s, begun_s = line.now_unix_s() + 0.3, time.monotonic()
    waiting = asyncio.create_task(line.until(due_unix_s))
    await asyncio.sleep(0.05)
    set_clock(set_by_s)
    await asyncio.wait_for(waiting, 30)
    assert time.monotonic() - begun_s >= 0.29, "not before its time either"
    assert line.set_by_s() == pytest.approx(set_by_s, abs=0.5)


def test_a_jump_of_the_controllers_clock_is_seen_once(set_clock: Callable[[float], None]) -> None:
    watch = JumpWatch()
    assert watch.jumped_s() == 0
    set_clock(-HOUR_S)
    assert watch.jumped_s() == pytest.approx(-HOUR_S, abs=0.5)
    assert watch.jumped_s() == 0


async def test_a_decision_under_way_outlives_a_clock_that_is_set(
    told: Told, set_clock: Callable[[float], None], tmp_path: Path
) -> None:
    """The user's clock is 1.5 s ahead: its order stands on its own clock, its handover comes back to the decision's."""
    with contextlib.closing(Database(parse_database("", tmp_path / "c.sqlite3"))) as database:
        told.report(1.5)
        port, book, ended = Answers(lambda event: None, {}), PlanBook(database), []

        async def over(decision: Decision) -> None:
            ended.append(decision)

        moves = Moves(None, told.users, port, book, over)  # type: ignore[arg-type]  # nothing migrates
        now_s = time.time()
        decision = Decision(
            id="d", user="ue-1", service="app-ue-1", planner="orchestrated", order="coordinated", reason="r",
            made_unix_s=now_s, from_base_station="bs-1", base_station="bs-2", from_server="edge-1", server="edge-1",
            handover_at_unix_s=now_s + 0.3,
        )  # fmt: skip
        await moves.begin(
            decision, strategy="auto", wanted_handover_unix_s=decision.handover_at_unix_s,
            latest_handover_unix_s=now_s + 5,
        )  # fmt: skip
        task = moves.running["ue-1"].task
        assert task is not None
        set_clock(-HOUR_S)
        while not (orders := port.answer("ue-1").orders):
            await asyncio.sleep(0.01)
        assert orders[0].at_unix_s == pytest.approx(now_s + 0.3 + 1.5, abs=0.05)
        told.users.take("ue-1", handover(unix_s=now_s + 0.4 + 1.5))
        await asyncio.wait_for(task, 30)
        (final,) = ended
        assert (final.state, final.error) == (DecisionState.DONE, "")
        assert final.began_handover_unix_s == pytest.approx(now_s + 0.4, abs=0.05)
        assert final.ended_unix_s == pytest.approx(time.time(), abs=60), "not on the clock that was set"


async def test_a_handover_does_not_wait_for_a_migration_that_cannot_begin(told: Told, tmp_path: Path) -> None:
    """Its base station is heard well enough to wait for an hour; the service is not where it was any more."""
    region = Region(())
    store = MigrationStore(parse_database("", tmp_path / "c.sqlite3"))
    migrations = Migrations(region, Services(region, ipaddress.IPv4Interface("10.77.1.0/16")), store)
    told.report()
    port, ended = Answers(lambda event: None, {}), []

    async def over(decision: Decision) -> None:
        ended.append(decision)

    moves = Moves(migrations, told.users, port, PlanBook(store.database), over)
    now_s = time.time()
    decision = Decision(
        id="d", user="ue-1", service="app-ue-1", planner="orchestrated", order="coordinated", reason="r",
        made_unix_s=now_s, from_base_station="bs-1", base_station="bs-2", from_server="edge-1", server="edge-2",
        pre_migration_at_unix_s=now_s, migration_at_unix_s=now_s + 0.2, handover_at_unix_s=now_s + 0.2,
    )  # fmt: skip
    await moves.begin(decision, strategy="auto", wanted_handover_unix_s=now_s, latest_handover_unix_s=now_s + HOUR_S)
    task = moves.running["ue-1"].task
    assert task is not None
    while not port.answer("ue-1").orders:
        await asyncio.sleep(0.01)
    told.users.take("ue-1", handover())
    await asyncio.wait_for(task, 30)
    (final,) = ended
    assert final.state is DecisionState.FAILED
    assert final.error.startswith("there is no service 'app-ue-1'")
    assert final.measured is not None, "the user was handed over all the same"
    store.close()


# --- the users' clocks ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("ahead_s", [1.5, -1.5, 0.2, HOUR_S])
def test_a_users_clock_is_always_reckoned_with(told: Told, ahead_s: float) -> None:
    for late_s in (0.3, 0.0, 0.9, 0.1):
        told.report(ahead_s, late_s)
    assert told.state.clock_ahead_s(time.time()) == pytest.approx(ahead_s, abs=0.05), "the soonest report counts"
    assert told.texts.count("a user's clock is not ours: orders follow its own") == (abs(ahead_s) > 2)


def test_a_users_clock_that_is_set_is_followed(told: Told) -> None:
    for ahead_s in (0.0, HOUR_S, 0.0):
        told.report(ahead_s)
        assert told.state.clock_ahead_s(time.time()) == pytest.approx(ahead_s, abs=0.05)


# --- what cannot be -------------------------------------------------------------------------------------------
def test_fifty_absurd_values_are_one_line(told: Told) -> None:
    for number in range(50):
        level = MOST_DBM + 100.0 + number
        good = Hears(base_station="bs-1", rssi_dbm=-50.0, filtered_dbm=-50.0)
        told.report(hears=(Hears(base_station=f"bs-{number}", rssi_dbm=level, filtered_dbm=level), good))
    assert told.texts == ["an RSSI is left out"]
    assert "out of the possible" in told.lines[0][1]["value"], "the value is a fact beside it"
    assert told.state.report is not None
    assert [one.base_station for one in told.state.report.hears] == ["bs-1"]


@pytest.mark.parametrize(
    ("absurd", "says"),
    [
        ({"interruption_ms": -5.0}, "cannot have taken so long"),
        ({"interruption_ms": 1e12}, "cannot have taken so long"),
        ({"unix_s": 1e300}, "time cannot be"),
        ({"unix_s": 1e12}, "time cannot be"),
        ({"unix_s": 5.0}, "time cannot be"),
    ],
)
async def test_a_handover_that_cannot_be_is_corrected_before_it_is_measured_by(
    told: Told, absurd: dict[str, float], says: str
) -> None:
    told.report()
    waiting = told.users.handed_over("d")
    told.users.take("ue-1", handover(**absurd))
    told.users.take("ue-1", handover(**absurd))
    record = await waiting
    assert record.interruption_ms == 500.0
    assert record.unix_s == pytest.approx(time.time(), abs=5.0)
    assert len(told.texts) == 1, "named once"
    assert says in told.texts[0]
    assert all(0 <= one.interruption_ms < 1e5 for one in told.state.handovers)


def test_a_user_that_was_handed_over_is_not_planned_for_where_it_was(told: Told) -> None:
    told.report(wants="bs-2")
    told.users.take("ue-1", handover())
    assert told.state.report is not None
    assert (told.state.report.serving, told.state.report.wants) == ("bs-2", "")
    told.report(serving="bs-1")
    told.users.take("ue-1", handover(unix_s=time.time() - 60))
    assert told.state.report.serving == "bs-1", "a record that was kept is older than the report"


def test_a_user_that_jumps_is_named_once(told: Told) -> None:
    for step in range(8):
        told.report(elapsed_s=1.0 + step * 0.2, x_m=0.0 if step < 4 else 1e9)
    assert told.texts == ["a user jumped"]
    told.report(elapsed_s=0.0, x_m=0.0)
    assert told.texts == ["a user jumped"], "its way began anew"
