from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from whimbrel.model.errors import BadInput
from whimbrel.ran.pathloss import Air, PathLoss, Shadowing, Station


def test_free_space_at_one_metre() -> None:
    assert PathLoss(frequency_mhz=5180).loss_at_reference_db == pytest.approx(46.7, abs=0.05)
    assert PathLoss(frequency_mhz=1000).loss_at_reference_db == pytest.approx(32.45, abs=0.05)
    assert PathLoss(reference_loss_db=40).loss_at_reference_db == 40


@pytest.mark.parametrize(("exponent", "per_decade"), [(2.0, 20), (3.0, 30), (3.5, 35)])
def test_the_level_falls_by_ten_times_the_exponent_per_decade(exponent: float, per_decade: float) -> None:
    loss = PathLoss(exponent=exponent)
    assert float(loss.mean_dbm(10) - loss.mean_dbm(100)) == pytest.approx(per_decade)
    assert float(loss.mean_dbm(1)) == pytest.approx(20 - loss.loss_at_reference_db)
    assert float(loss.mean_dbm(0)) == float(loss.mean_dbm(1)), "nobody stands in the antenna"


def test_shadowing_has_the_spread_and_the_correlation_asked_for() -> None:
    """Over many seeds: standard deviation, and exp(-d / D) at several distances (Gudmundson)."""
    sigma, reach_m = 6.0, 20.0
    apart_m = np.array([0.0, 5.0, 10.0, 20.0, 40.0, 80.0])
    starts = np.linspace(0, 5000, 40)
    products, squares = np.zeros(len(apart_m)), 0.0
    for seed in range(120):
        field = Shadowing(sigma, reach_m, [seed])
        here = field.at(starts, np.zeros_like(starts))
        squares += float((here**2).mean())
        there = field.at(starts[:, None] + apart_m * 0.6, np.zeros((40, 1)) + apart_m * 0.8)  # any direction
        products += (here[:, None] * there).mean(axis=0)
    assert math.sqrt(squares / 120) == pytest.approx(sigma, rel=0.03)
    assert products / products[0] == pytest.approx(np.exp(-apart_m / reach_m), abs=0.05)


def test_shadowing_is_near_gaussian() -> None:
    values = np.concatenate(
        [Shadowing(1.0, 10.0, [s]).at(np.arange(0, 20000, 100.0), np.zeros(200)) for s in range(50)]
    )
    assert abs(float((values**3).mean())) < 0.1
    assert float((values**4).mean()) == pytest.approx(3.0, abs=0.2)


def stations(**more: float) -> list[Station]:
    loss = PathLoss(**more)
    return [Station(name=name, x_m=x, y_m=0, height_m=3, loss=loss) for name, x in (("a", 0), ("b", 60))]


def test_the_same_seed_is_the_same_air_and_another_is_another() -> None:
    one, two, other = Air(stations(), 7), Air(stations()[::-1], 7), Air(stations(), 8)
    assert one.measure(20, 1, 5) == {name: two.measure(20, 1, 5)[name] for name in ("a", "b")}
    assert one.measure(20, 1, 5) != one.measure(20, 1, 6), "each measurement has a noise of its own"
    assert one.measure(20, 1, 5) != other.measure(20, 1, 5)


def test_stations_have_shadows_of_their_own() -> None:
    air = Air(stations(noise_db=0.0))
    x = np.linspace(0, 3000, 400)
    shadows = [air.local_dbm(name, x, 0) - air.mean_dbm(name, x, 0) for name in "ab"]
    assert abs(np.corrcoef(*shadows)[0, 1]) < 0.3


def test_what_lies_below_the_floor_is_not_heard() -> None:
    air = Air(stations(shadowing_db=0.0, noise_db=0.0, floor_dbm=-70.0, sensitivity_dbm=-70.0))
    assert set(air.measure(0, 0, 1)) == {"a"}
    assert air.measure(5000, 0, 1) == {}


def test_noise_has_the_spread_asked_for() -> None:
    air = Air(stations(shadowing_db=0.0, noise_db=2.0, floor_dbm=-150.0))
    values = [air.measure(30, 0, number)["a"] for number in range(800)]
    assert float(np.std(values)) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("exponent", 0.5), ("exponent", math.nan), ("shadowing_db", -1), ("correlation_m", 0), ("frequency_mhz", 0),
     ("transmit_power_dbm", 200), ("floor_dbm", -500), ("noise_db", math.inf), ("reference_loss_db", -3)],
)  # fmt: skip
def test_impossible_parameters_are_refused(field: str, value: float) -> None:
    loss = msgspec.structs.replace(PathLoss(), **{field: value})
    with pytest.raises(BadInput, match=rf"bs-1: {field} .* is not possible: use"):
        loss.check("bs-1")


def test_a_sensitivity_below_the_floor_is_refused() -> None:
    with pytest.raises(BadInput, match="what is not heard cannot be decoded"):
        PathLoss(floor_dbm=-80, sensitivity_dbm=-90).check("bs-1")
