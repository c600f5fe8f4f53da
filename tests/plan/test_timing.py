"""Figure 2 as a table, and what holds for all times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.model.errors import BadInput
from whimbrel.plan.timing import Durations, Order, Timing, interruption_s, trigger


@pytest.mark.parametrize(
    ("order", "durations", "expected"),
    [
        # T_pre-mig 2 s, T_mig 0.3 s, T_ho 0.5 s, the handover wanted at 10: (pre-migration, migration, handover, away)
        (Order.UNCOORDINATED, Durations(2, 0.3, 0.5), (10, 12, 10, 0.8)),
        (Order.EARLY, Durations(2, 0.3, 0.5), (10.55 - 2.2, 10.55, 10, 0.8)),
        (Order.LATE, Durations(2, 0.3, 0.5), (9.67 - 2.2, 9.67, 10, 0.8)),
        (Order.COORDINATED, Durations(2, 0.3, 0.5), (10.1 - 2.2, 10.1, 10, 0.5)),
        # the migration is the longer one
        (Order.UNCOORDINATED, Durations(2, 0.9, 0.5), (10, 12, 10, 1.4)),
        (Order.COORDINATED, Durations(2, 0.9, 0.5), (9.8 - 2.2, 9.8, 10, 0.9)),
        # no migration, or no handover
        (Order.COORDINATED, Durations(0, 0, 0.5), (10.25, 10.25, 10, 0.5)),
        (Order.COORDINATED, Durations(2, 0.3, 0), (9.85 - 2.2, 9.85, 10, 0.3)),
        # a pre-migration that ends before the handover does
        (Order.UNCOORDINATED, Durations(0.1, 0.3, 0.5), (10, 10.5, 10, 0.8)),
    ],
)
def test_the_timelines(order: Order, durations: Durations, expected: tuple[float, float, float, float]) -> None:
    timing = trigger(order, durations, handover_at_s=10, now_s=0)
    found = (timing.pre_migration_at_s, timing.migration_at_s, timing.handover_at_s, timing.interruption_s)
    assert found == pytest.approx(expected)
    assert timing.late_by_s == 0


def test_a_handover_that_comes_too_soon_waits_with_the_migration_if_it_may() -> None:
    late = Durations(5, 0.3, 0.5)
    waits = trigger(Order.COORDINATED, late, handover_at_s=2, now_s=0, latest_handover_s=8)
    assert waits.pre_migration_at_s == 0
    assert (waits.migration_at_s, waits.handover_at_s) == pytest.approx((5.5, 5.4))
    assert waits.interruption_s == pytest.approx(0.5)
    assert waits.late_by_s == pytest.approx(3.4)
    cannot = trigger(Order.COORDINATED, late, handover_at_s=2, now_s=0)
    assert (cannot.migration_at_s, cannot.handover_at_s) == pytest.approx((5.5, 2))
    assert cannot.interruption_s == pytest.approx(0.8)


def test_the_memory_is_across_when_the_last_order_for_the_handover_goes_out() -> None:
    both = Durations(2, 0.3, 0.5)
    timing = trigger(Order.COORDINATED, both, handover_at_s=10, now_s=0, notice_s=0.6)
    assert (timing.migration_at_s, timing.handover_at_s) == pytest.approx((10.1, 10))
    assert timing.pre_migration_at_s + 2 * 1.1 == pytest.approx(10.1 - 0.6)
    alone = trigger(Order.COORDINATED, Durations(2, 0.3, 0), handover_at_s=10, now_s=0, notice_s=0.6)
    assert alone.pre_migration_at_s + 2 * 1.1 == pytest.approx(alone.migration_at_s), "no order, no notice"


def test_a_handover_that_is_due_already_begins_now() -> None:
    timing = trigger(Order.COORDINATED, Durations(0, 0.3, 0.5), handover_at_s=-4, now_s=3)
    assert timing.handover_at_s == 3
    assert timing.interruption_s == pytest.approx(0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_times_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(BadInput, match="handover_at_s"):
        trigger(Order.COORDINATED, Durations(1, 1, 1), handover_at_s=value, now_s=0)
    with pytest.raises(BadInput, match="migration_s"):
        Durations(1, value, 1)
    with pytest.raises(BadInput, match="handover_s is -1"):
        Durations(1, 1, -1)


times = st.floats(0, 100).map(lambda value: round(value, 3))


@given(st.sampled_from(Order), times, times, times, times, times)
def test_nothing_begins_in_the_past_and_memory_is_across_in_time(
    order: Order, pre: float, mig: float, ho: float, at: float, wait: float
) -> None:
    durations = Durations(pre, mig, ho)
    timing = trigger(order, durations, handover_at_s=at, now_s=50, latest_handover_s=at + wait)
    assert timing.pre_migration_at_s >= 50 - 1e-9
    assert timing.migration_at_s >= timing.pre_migration_at_s + pre - 1e-9
    assert timing.handover_at_s >= max(at, 50) - 1e-9
    assert timing.handover_at_s <= max(at + wait, 50) + 1e-9


@given(times, times, times, st.floats(100, 200))
def test_with_time_enough_the_interruption_is_the_longer_of_both(
    pre: float, mig: float, ho: float, ahead: float
) -> None:
    def away(order: Order) -> Timing:
        return trigger(order, Durations(pre, mig, ho), handover_at_s=300 + ahead, now_s=0)

    assert away(Order.COORDINATED).interruption_s == pytest.approx(max(mig, ho))
    for order in (Order.EARLY, Order.LATE, Order.UNCOORDINATED):
        assert away(order).interruption_s == pytest.approx(mig + ho)


@given(times, times, times, st.floats(0.9, 1.1), st.floats(0.9, 1.1))
def test_predictions_that_are_10_percent_off_cost_at_most_that(
    pre: float, mig: float, ho: float, mig_off: float, ho_off: float
) -> None:
    timing = trigger(Order.COORDINATED, Durations(pre, mig, ho), handover_at_s=500, now_s=0)
    real = interruption_s(timing.migration_at_s, mig * mig_off, timing.handover_at_s, ho * ho_off)
    assert real <= 1.1 * max(mig, ho) + 0.1 * min(mig, ho) + 1e-9
    # and had the copy ahead taken 10 % longer, it would still have been done
    assert timing.pre_migration_at_s + pre * 1.1 <= timing.migration_at_s + 1e-9
