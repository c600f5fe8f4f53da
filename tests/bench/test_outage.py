"""The arithmetic of outages, by hand-made traces. Times in ms here, ns in the code."""

from __future__ import annotations

import math

import pytest

from whimbrel.client.outage import Trace, median, outage, quantile, spread


def trace(*requests: tuple[float, float | None], until: float = 1000.0) -> Trace:
    sent = [int(s * 1e6) for s, _ in requests]
    answered = [int(a * 1e6) if a is not None else 0 for _, a in requests]
    return Trace(sent, answered, int(until * 1e6))


QUIET = trace((0, 1), (10, 11), (20, 21.5))


@pytest.mark.parametrize(
    ("requests", "delays"),
    [
        ([(100, 101), (110, 112)], [1, 2]),
        # held and delivered late: each counts to its own answer
        ([(100, 180), (101, 180), (102, 181)], [80, 79, 79]),
        # lost: until anything later was heard
        ([(100, None), (101, None), (150, 151)], [51, 50, 1]),
        # overtaken: a lost request counts to the earliest answer to a later one
        ([(100, None), (101, 140), (102, 120)], [20, 39, 18]),
        # an answered request counts to its own answer, even if a later one was answered before
        ([(100, 140), (101, 120)], [40, 19]),
        # never heard again: until the end of the observation
        ([(100, 101), (900, None)], [1, 100]),
        ([], []),
    ],
)
def test_delays(requests: list[tuple[float, float | None]], delays: list[float]) -> None:
    assert trace(*requests).delays_ms() == pytest.approx(delays)


def test_outage_is_the_longest_delay_less_the_quiet_median() -> None:
    seen = outage(QUIET, trace((100, 101), (130, 210), (140, 211)), int(100e6))
    assert seen is not None
    assert (seen.longest_ms, seen.median_ms, seen.outage_ms, seen.at_ms) == pytest.approx((80, 1, 79, 30))


def test_outage_is_never_negative_and_needs_both_phases() -> None:
    fast = outage(QUIET, trace((100, 100.2)), int(100e6))
    assert fast is not None
    assert fast.outage_ms == 0
    assert outage(trace(), trace((1, 2)), 0) is None
    assert outage(QUIET, trace(), 0) is None


def test_lost_counts_what_was_never_answered() -> None:
    assert trace((1, None), (2, 3), (4, None)).lost == 2


@pytest.mark.parametrize(("fraction", "value"), [(0.5, 5), (0.95, 10), (0.9, 9), (0.91, 10), (0.0, 1), (1.0, 10)])
def test_quantile_is_a_value_that_occurred(fraction: float, value: float) -> None:
    assert quantile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], fraction) == value


def test_median_and_spread() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
    assert math.isnan(median([]))
    assert math.isnan(quantile([], 0.5))
    assert spread([]) == {}
    assert spread([1, 2, 9]) == {"p50": 2, "p99": 9, "max": 9}
