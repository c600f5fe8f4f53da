"""Handovers to come of users of whom only the network tells."""

from __future__ import annotations

import math
from typing import Any

import pytest
from planning_people import forecast, report

from whimbrel.controller.planning.due import due_of
from whimbrel.controller.planning.foresee import Foresight
from whimbrel.model.edge import BaseStation
from whimbrel.model.radio import Hears, UserReport


def station(name: str) -> BaseStation:
    return BaseStation(name=name, max_users=10, floor_dbm=-110.0)


def told(now_s: float, slope: float = 1.0, **changes: Any) -> UserReport:
    """What the network tells after so long: the serving cell fades, the other one grows; they cross at 15 s."""
    levels = {"bs-1": -75.0 - slope * now_s, "bs-2": -105.0 + slope * now_s}
    hears = tuple(Hears(base_station=name, rssi_dbm=level, filtered_dbm=level) for name, level in levels.items())
    return report(hears=hears, x_m=math.nan, y_m=math.nan, speed_m_per_s=math.nan, **changes)


def heard(until_s: int, slope: float = 1.0) -> UserReport:
    foresight = Foresight(station)
    for second in range(until_s):
        seen = foresight.seen(told(second, slope), float(second))
    return seen


def test_a_user_that_only_the_network_tells_of_is_foreseen() -> None:
    due = due_of(heard(14), 0.0, ahead=True)
    assert due is not None, "the levels cross in two seconds, and some more until the margin is reached"
    assert (due.source, due.target, due.wanted) == ("bs-1", "bs-2", False)
    assert 0.5 < due.in_s < 10
    assert due.latest_s > due.in_s
    assert due.levels_dbm["bs-2"] > -105 + 13 > due.levels_dbm["bs-1"] - 5


def test_who_stays_is_not_foreseen_to_go() -> None:
    assert due_of(heard(14, slope=0.0), 0.0, ahead=True) is None


def test_a_forecast_ages_between_two() -> None:
    foresight = Foresight(station)
    for second in range(14):
        first = foresight.seen(told(second), float(second)).forecast
    later = foresight.seen(told(13.4), 13.4).forecast
    assert first is not None
    assert later is not None
    assert later.median_s == pytest.approx(max(0.0, first.median_s - 0.4))


def test_a_users_own_forecast_stays_and_another_cell_begins_anew() -> None:
    foresight, own = Foresight(station), forecast()
    assert foresight.seen(report(forecast=own), 0.0).forecast == own
    for second in range(14):
        foresight.seen(told(second), float(second))
    came = foresight.seen(told(13.2, serving="bs-2"), 13.2)
    assert came.forecast is None or came.forecast.target == "bs-1", "it is there already"
