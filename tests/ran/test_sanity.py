from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ran_walks import row_of_stations

from whimbrel.ran.handover import HandoverRule, State
from whimbrel.ran.pathloss import Air, PathLoss
from whimbrel.ran.sanity import Judge
from whimbrel.ran.user import UserRadio

FINE = {"a": -60.0, "b": -70.0}


def judge() -> Judge:
    found = Judge(frozenset("ab"), max_speed_m_per_s=50)
    for number in range(5):
        assert found.hear(number * 0.2, number * 0.2, 0, FINE).told == ()
    return found


@pytest.mark.parametrize(
    ("rssi", "believed", "said"),
    [
        ({"a": math.nan, "b": -70.0}, {"b": -70.0}, "not-a-number: RSSI of a is nan"),
        ({"a": -math.inf, "b": -70.0}, {"b": -70.0}, "not-a-number: RSSI of a is -inf"),
        ({"a": 40.0}, {}, "absurd: RSSI of a is 40 dBm"),
        ({"a": -4000.0}, {}, "absurd: RSSI of a is -4000 dBm"),
        ({"x": -60.0, "a": -60.0}, {"a": -60.0}, "unknown-station: there is no base station 'x'"),
        ({"a": True, "b": -70.0}, {"b": -70.0}, "not-a-number: RSSI of a is True"),
    ],
)
def test_a_value_that_cannot_be_is_left_out_and_named_once(rssi: dict, believed: dict, said: str) -> None:
    one = judge()
    first, second = one.hear(1.0, 1.0, 0, rssi), one.hear(1.2, 1.2, 0, rssi)
    assert first.rssi_dbm == second.rssi_dbm == believed
    (line,) = first.told
    assert line.startswith(said)
    assert second.told == ()
    for number in range(200):  # fine for longer than a while
        one.hear(1.4 + number * 0.2, 1.4, 0, FINE)
    assert one.hear(60.0, 1.4, 0, rssi).told, "named again when it comes back"


@pytest.mark.parametrize(
    ("t_s", "x_m", "said"),
    [
        (math.nan, 1.0, "not-a-number: time nan"),
        (1.0, math.inf, "not-a-number: time 1.0 or place inf"),
        (-100.0, 1.0, "clock-back: the clock went back by 101 s"),
        (1.0, 5000.0, "jump: the user jumped 4999 m in 0.2 s"),
    ],
)
def test_a_measurement_at_an_impossible_time_or_place_is_left_out(t_s: float, x_m: float, said: str) -> None:
    one = judge()
    verdict = one.hear(t_s, x_m, 0, FINE)
    assert verdict.rssi_dbm is None
    assert verdict.told[0].startswith(said)
    assert one.hear(1.0, 1.0, 0, FINE).rssi_dbm == FINE, "the next one is believed again"


def test_a_clock_that_was_set_is_believed_after_a_while_and_all_begins_anew() -> None:
    one = judge()
    verdicts = [one.hear(-500 + number * 0.2, 1.0, 0, FINE) for number in range(5)]
    assert [verdict.rssi_dbm is None for verdict in verdicts] == [True, True, False, False, False]
    assert [verdict.begins_anew for verdict in verdicts] == [False, False, True, False, False]
    assert sum(len(verdict.told) for verdict in verdicts) == 1


def test_after_a_long_gap_all_begins_anew() -> None:
    verdict = judge().hear(3600.0, 1.0, 0, FINE)
    assert verdict.rssi_dbm == FINE
    assert verdict.begins_anew
    assert verdict.told[0].startswith("clock-gap: no measurement for")


numbers = st.one_of(st.floats(-200, 100), st.floats(allow_nan=True, allow_infinity=True))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(numbers, numbers, numbers, numbers, numbers, numbers), max_size=30))
def test_nothing_that_is_measured_brings_a_user_down(rows: list[tuple[float, ...]]) -> None:
    air = Air(row_of_stations(2, 50, PathLoss()), 1)
    view = UserRadio(air, HandoverRule())
    for t_s, x_m, y_m, speed, one, two in rows:
        view.hear(t_s, x_m, y_m, speed, {"bs-0": one, "bs-1": two, "bs-9": -50.0})
    view.forecast()


def test_strange_measurements_lead_to_no_handover() -> None:
    """A user who stands hears one in five measurements as rubbish: NaN, absurd values, leaps, clock and place jumps."""
    air = Air(row_of_stations(2, 50, PathLoss(shadowing_db=1.0)), 1)
    view = UserRadio(air, HandoverRule(), state=State(serving="bs-0"))
    told = []
    for number in range(1000):
        t_s, x_m = number * 0.2, 5.0
        heard = air.measure(x_m, 0.0, number)
        match number % 25:
            case 4:
                heard = dict.fromkeys(heard, math.nan)
            case 9:
                heard = {"bs-0": -400.0, "bs-1": 300.0}
            case 14:
                heard = {"bs-0": -94.0, "bs-1": -20.0}
            case 19:
                t_s -= 1000
            case 24:
                x_m = 50_000.0
        seen = view.hear(t_s, x_m, 0.0, 0.0, heard)
        assert seen.decision is None
        told += seen.told
    kinds = {line.split(":")[0] for line in told}
    assert kinds == {"not-a-number", "absurd", "leap", "clock-back", "jump"}
    assert len(told) < 12, "each is named once"
