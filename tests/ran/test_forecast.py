"""Forecasts of handovers against what then happened, over many seeds. The same seeds give the same figures: nothing is
timed here. docs/radio.md has the figures for more of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from ran_walks import Forecast, go, median_error_s, row_of_stations, way_past

from marks import thorough
from whimbrel.ran.handover import HandoverRule, State
from whimbrel.ran.pathloss import Air, PathLoss
from whimbrel.ran.user import UserRadio

SEEDS = range(7)


@cache
def walks(speed_m_per_s: float, known: bool) -> tuple[Forecast, ...]:
    spacing_m = 50.0 if speed_m_per_s < 5 else 100.0
    every = 8 if speed_m_per_s < 5 else 3
    found = [go(seed, speed_m_per_s, known=known, spacing_m=spacing_m, every=every) for seed in SEEDS]
    assert all(walk.handovers for walk in found)
    return tuple(forecast for walk in found for forecast in walk.forecasts)


@pytest.mark.parametrize(
    ("speed", "known", "from_s", "to_s", "at_most_s"),
    [
        *thorough(
            (1.0, True, 0, 2, 2.0), (1.0, True, 2, 10, 4.5), (1.0, True, 10, 60, 6.0),
            (1.0, False, 0, 2, 2.0), (1.0, False, 2, 10, 4.5),
        ),
        (10.0, True, 0, 2, 1.0), (10.0, True, 2, 10, 1.5),
        (10.0, False, 0, 2, 1.0), (10.0, False, 2, 10, 2.5),
    ],
)  # fmt: skip
def test_the_median_error(speed: float, known: bool, from_s: float, to_s: float, at_most_s: float) -> None:
    made = list(walks(speed, known))
    assert sum(from_s <= each.lead_s < to_s for each in made) >= 10
    assert median_error_s(made, from_s, to_s) <= at_most_s


def test_who_knows_the_way_is_closer_to_the_truth() -> None:
    """At 10 m/s. At 1 m/s the shadows that are still to come weigh more than all that the way can tell."""
    by_path, by_slope = (median_error_s(list(walks(10.0, known)), 2, 20) for known in (True, False))
    assert by_path < by_slope


@pytest.mark.parametrize(("speed", "known"), [(10.0, True), (10.0, False), *thorough((1.0, True), (1.0, False))])
def test_the_target_is_right_and_the_truth_mostly_lies_where_it_is_said_to(speed: float, known: bool) -> None:
    """Early and late have eight of ten cases between them."""
    made = [each for each in walks(speed, known) if 1 <= each.lead_s < 20]
    assert np.mean([each.is_target for each in made]) > 0.85
    assert 0.6 < np.mean([each.is_covered for each in made]) <= 1.0


def standing(known: bool) -> UserRadio:
    """A user who stands beside the first station."""
    air = Air(row_of_stations(2, 50, PathLoss()), 3)
    track = way_past(2, 50, 1.0) if known else None
    return UserRadio(air, HandoverRule(), track, State(serving="bs-0"))


def test_who_does_not_move_gets_no_forecast() -> None:
    view = standing(False)
    for number in range(100):
        view.hear(number * 0.2, 0.0, 5.0, 0.0, view.air.measure(0.0, 5.0, number))
    assert view.forecast() is None


def test_without_a_station_or_during_a_handover_there_is_no_forecast() -> None:
    for known in (True, False):
        view = standing(known)
        assert UserRadio(view.air, view.rule, view.track).forecast() is None
        view.begun("bs-1")
        assert view.forecast() is None


def test_the_same_measurements_give_the_same_forecast() -> None:
    one, two = (go(5, 1.0, known=True, every=50) for _ in range(2))
    assert one == two


def test_a_station_that_fades_beneath_its_sensitivity_is_forecast_as_lost() -> None:
    """Two stations too far apart: where the first is lost nothing is stronger by the margin before."""
    loss = PathLoss(shadowing_db=0.1, noise_db=0.1, floor_dbm=-120.0, sensitivity_dbm=-80.0)
    air = Air(row_of_stations(2, 100, loss), 1)
    track = way_past(2, 100, 2.0)
    view = UserRadio(air, HandoverRule(margin_db=30.0), track)
    for number in range(int(20 / 0.2)):
        place = track.at(number * 0.2)
        seen = view.hear(number * 0.2, *place, air.measure(place.x_m, place.y_m, number))
        if seen.decision:
            view.begun(seen.decision.target)
            view.finished()
    forecast = view.forecast()
    assert forecast is not None
    assert forecast.target == "bs-1"
    # -80 dBm is 59 m from the station: at 2 m/s some 10 s after the 20 that have gone
    assert forecast.median_s == pytest.approx(9.5, abs=1.5)


def test_the_levels_at_the_handover_are_those_that_come() -> None:
    """Without shadows the mean of all futures is the truth: 10 m/s past two stations, known way."""
    loss = PathLoss(shadowing_db=0.1, noise_db=0.1, floor_dbm=-120.0)
    air, track = Air(row_of_stations(2, 100, loss), 1), way_past(2, 100, 10.0)
    view = UserRadio(air, HandoverRule(), track)
    forecast = None
    for number in range(int(6 / 0.2)):
        now_s = number * 0.2
        place = track.at(now_s)
        seen = view.hear(now_s, *place, air.measure(place.x_m, place.y_m, number))
        if seen.decision:
            view.begun(seen.decision.target)
            view.finished()
        forecast = forecast or view.forecast()
        if forecast is not None:
            break
    assert forecast is not None
    then = track.at(now_s + forecast.median_s)
    for name in ("bs-0", "bs-1"):
        true_dbm = float(air.mean_dbm(name, np.array([then.x_m]), np.array([then.y_m]))[0])
        assert forecast.levels_dbm[name] == pytest.approx(true_dbm, abs=1.0), name
        assert abs(true_dbm - seen.filtered_dbm[name]) > 3, "and not those of now"
