"""When the rounds end: the rule as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from whimbrel.plan.convergence import Limits, RoundFacts, Stop, decide, predicted_freeze_ms, worth_waiting_ms

MB = 1 << 20


def rounds(*facts: tuple[int, float]) -> list[RoundFacts]:
    return [RoundFacts(dirty_bytes=size, duration_ms=took) for size, took in facts]


@pytest.mark.parametrize(
    ("facts", "limits", "elapsed_ms", "verdict"),
    [
        ([], Limits(), 0, Stop.GO_ON),
        ([(200 * MB, 200)], Limits(), 200, Stop.GO_ON),  # the first round says nothing about writing
        ([(1000, 1)], Limits(), 1, Stop.GO_ON),
        ([(200 * MB, 200), (MB, 2)], Limits(), 202, Stop.SMALL),
        ([(200 * MB, 200), (MB + 1, 2)], Limits(), 202, Stop.GO_ON),
        ([(200 * MB, 200), (50 * MB, 50)], Limits(), 250, Stop.GO_ON),
        ([(200 * MB, 200), (50 * MB, 50), (46 * MB, 46)], Limits(), 300, Stop.NO_PROGRESS),
        ([(200 * MB, 200), (50 * MB, 50), (44 * MB, 44)], Limits(), 300, Stop.GO_ON),
        ([(200 * MB, 200), (190 * MB, 190)], Limits(), 390, Stop.NO_PROGRESS),
        ([(100 * MB, 100)] * 3, Limits(max_rounds=3), 300, Stop.ROUND_LIMIT),
        ([(100 * MB, 100)], Limits(max_rounds=1), 100, Stop.ROUND_LIMIT),
        ([(200 * MB, 200), (30 * MB, 30)], Limits(max_downtime_ms=100), 230, Stop.MEETS_BUDGET),
        ([(200 * MB, 200), (50 * MB, 50)], Limits(max_downtime_ms=100), 250, Stop.GO_ON),
        # with a budget it goes on as long as it may, even without progress: the load may end
        ([(200 * MB, 200), (190 * MB, 190)], Limits(max_downtime_ms=100), 390, Stop.GO_ON),
        ([(200 * MB, 200), (190 * MB, 190)], Limits(deadline_ms=500), 390, Stop.DEADLINE),
        ([(200 * MB, 200)], Limits(deadline_ms=400), 200, Stop.DEADLINE),
        ([(200 * MB, 200)], Limits(deadline_ms=10_000), 200, Stop.GO_ON),
    ],
)
def test_decide(facts: list[tuple[int, float]], limits: Limits, elapsed_ms: float, verdict: Stop) -> None:
    assert decide(rounds(*facts), limits, elapsed_ms=elapsed_ms) is verdict


@pytest.mark.parametrize(
    ("left_mb", "deadline_ms", "verdict"),
    [
        (16, 9000, Stop.GO_ON),  # 4.5 s are over; a round of 1.3 s and a freeze of 0.5 s after it
        (16, 6000, Stop.DEADLINE),
        (0, 4600, Stop.GO_ON),
        (48, 9000, Stop.DEADLINE),  # all of it is written again while it crosses
    ],
)
def test_what_is_dirty_after_the_first_round_tells_whether_another_fits(
    left_mb: int, deadline_ms: float, verdict: Stop
) -> None:
    first = RoundFacts(dirty_bytes=48 * MB, duration_ms=4000, left_bytes=left_mb * MB)
    assert decide([first], Limits(deadline_ms=deadline_ms), elapsed_ms=4500) is verdict
    assert decide([replace(first, left_bytes=None)], Limits(deadline_ms=deadline_ms), elapsed_ms=4500) is Stop.DEADLINE
    assert predicted_freeze_ms([first], Limits(fixed_freeze_ms=50)) == pytest.approx(50 + 4000 * left_mb / 48)


def test_the_prediction_is_the_fixed_part_and_the_next_dirty_set_at_the_rate_seen() -> None:
    facts = rounds((90 * MB, 90), (10 * MB, 10))
    assert predicted_freeze_ms(facts, Limits(fixed_freeze_ms=50)) == pytest.approx(60)
    assert predicted_freeze_ms([], Limits()) == float("inf")


def test_rounds_that_took_no_time_predict_the_fixed_part_alone() -> None:
    assert predicted_freeze_ms(rounds((MB, 0.0)), Limits(fixed_freeze_ms=50)) == pytest.approx(50)


@pytest.mark.parametrize(
    ("freeze_ms", "max_downtime_ms", "left_ms", "worth_ms"),
    [
        (60, 0, 0, 0),
        (69, 0, 0, 0),  # few pages: nothing to be gained
        (85, 0, 0, 50),
        (500, 0, 0, 100),
        (85, 200, 0, 50),
        (85, 115, 0, 30),  # who is held waits, too
        (85, 80, 0, 0),
        (85, 0, 1000, 50),
        (85, 0, 125, 20),  # twice
        (85, 0, 1, 0),
    ],
)
def test_a_moment_without_work_is_waited_for_where_that_can_spare_pages(
    freeze_ms: float, max_downtime_ms: float, left_ms: float, worth_ms: float
) -> None:
    assert worth_waiting_ms(freeze_ms, max_downtime_ms, left_ms) == pytest.approx(worth_ms)
