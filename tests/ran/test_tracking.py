from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ran_walks import row_of_stations, way_past

from whimbrel.ran.pathloss import Air, PathLoss
from whimbrel.ran.tracking import Tracker

LOSS = PathLoss()
INTERVAL_S = 0.2


def test_the_filter_comes_closer_to_the_truth_than_the_measurement() -> None:
    """Over many seeds, against what a perfect receiver would hear, with 3 dB of noise."""
    loss = PathLoss(noise_db=3.0)
    raw, filtered = [], []
    track = way_past(2, 50, 1.0)
    for seed in range(12):
        air = Air(row_of_stations(2, 50, loss), seed)
        tracker = Tracker({"bs-0": loss, "bs-1": loss})
        for number in range(int(track.duration_s / INTERVAL_S)):
            place = track.at(number * INTERVAL_S)
            heard = air.measure(place.x_m, place.y_m, number)
            tracker.hear(number * INTERVAL_S, heard, 1.0)
            truth = float(air.local_dbm("bs-0", place.x_m, place.y_m))
            if "bs-0" in heard and number > 10:
                raw.append(heard["bs-0"] - truth)
                filtered.append(tracker.estimates["bs-0"].level_dbm - truth)
    assert np.std(filtered) < 0.6 * np.std(raw)
    assert abs(float(np.mean(filtered))) < 0.2


def test_the_filter_knows_how_unsure_it_is() -> None:
    """The true level lies within its own standard deviation about as often as it should."""
    loss = PathLoss(noise_db=2.0)
    normal = []
    track = way_past(2, 50, 1.0)
    for seed in range(12):
        air = Air(row_of_stations(2, 50, loss), seed)
        tracker = Tracker({"bs-0": loss, "bs-1": loss})
        for number in range(int(track.duration_s / INTERVAL_S)):
            place = track.at(number * INTERVAL_S)
            tracker.hear(number * INTERVAL_S, air.measure(place.x_m, place.y_m, number), 1.0)
            known = tracker.estimates.get("bs-0")
            if known is not None and number % 25 == 24:
                sees = np.array([1.0, 0.0, 1.0])
                error = known.level_dbm - float(air.local_dbm("bs-0", place.x_m, place.y_m))
                normal.append(error / math.sqrt(float(sees @ known.covariance @ sees)))
    assert 0.6 < np.std(normal) < 1.4


def test_a_steady_slope_is_found() -> None:
    loss = PathLoss(shadowing_db=0.0, noise_db=0.5)
    tracker = Tracker({"a": loss})
    rng = np.random.default_rng(1)
    for number in range(200):
        tracker.hear(number * 0.1, {"a": -50 - 0.5 * number * 0.1 + rng.normal(0, 0.5)}, 2.0)
    assert tracker.estimates["a"].mean[1] == pytest.approx(-0.5, abs=0.15)


def test_a_single_leap_is_held_back_and_one_that_stays_is_believed() -> None:
    tracker = Tracker({"a": LOSS})
    for number in range(20):
        tracker.hear(number * 0.2, {"a": -60.0}, 1.0)
    assert tracker.hear(4.0, {"a": -110.0}, 1.0) == ["a"]
    assert tracker.estimates["a"].level_dbm == pytest.approx(-60, abs=1)
    assert tracker.hear(4.2, {"a": -60.0}, 1.0) == []
    assert tracker.hear(4.4, {"a": -100.0}, 1.0) == ["a"]
    assert tracker.hear(4.6, {"a": -101.0}, 1.0) == []
    assert tracker.estimates["a"].level_dbm == pytest.approx(-101, abs=1)


def test_a_station_not_heard_for_long_is_forgotten() -> None:
    tracker = Tracker({"a": LOSS, "b": LOSS})
    tracker.hear(0, {"a": -60, "b": -70}, 1.0)
    tracker.hear(5, {"a": -60}, 1.0)
    assert tracker.heard_dbm(5, 1.0).keys() == {"a"}
    tracker.hear(11, {"a": -60}, 1.0)
    assert tracker.estimates.keys() == {"a"}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(1e-6, 60), st.floats(-150, 0), st.floats(0, 150)), max_size=60))
def test_no_row_of_measurements_breaks_the_filter(row: list[tuple[float, float, float]]) -> None:
    tracker = Tracker({"a": LOSS})
    t_s = 0.0
    for gap_s, level, speed in row:
        t_s += gap_s
        tracker.hear(t_s, {"a": level}, speed)
        for known in tracker.estimates.values():
            assert np.isfinite(known.mean).all()
            assert np.linalg.eigvalsh(known.covariance).min() > -1e-6
            assert -250 < known.level_dbm < 100
