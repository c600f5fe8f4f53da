from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel.model.errors import BadInput
from whimbrel.ran import handover
from whimbrel.ran.handover import Decision, HandoverRule, Reason, State, begun, failed, finished, lost, step

RULE = HandoverRule(margin_db=3, time_to_trigger_ms=300, lost_after_ms=200, guard_s=5, guard_margin_db=4, retry_s=2)
SENSITIVITY = {"a": -82.0, "b": -82.0, "c": -82.0}
AT_A = State(serving="a")


def run(state: State, *measurements: tuple[float, dict[str, float]]) -> tuple[State, list[tuple[float, str, Reason]]]:
    """Measurements one after the other; a decision is carried out at once."""
    decided = []
    for t_s, levels in measurements:
        state, decision = step(RULE, SENSITIVITY, state, t_s, levels)
        if decision is not None:
            decided.append((t_s, decision.target, decision.reason))
            state = finished(begun(state, decision.target), t_s) if decision.target else lost(state, t_s)
    return state, decided


@pytest.mark.parametrize(
    ("what", "measurements", "decided"),
    [
        ("stronger by the margin for the time to trigger",
         [(0, {"a": -70, "b": -66}), (0.2, {"a": -70, "b": -66}), (0.3, {"a": -70, "b": -66})],
         [(0.3, "b", Reason.STRONGER)]),
        ("not by the margin", [(t / 10, {"a": -70, "b": -67.5}) for t in range(20)], []),
        ("not for long enough",
         [(0, {"a": -70, "b": -60}), (0.2, {"a": -70, "b": -60}), (0.25, {"a": -70, "b": -69}),
          (0.4, {"a": -70, "b": -60}), (0.6, {"a": -70, "b": -60})], []),
        ("another that has become the best meanwhile",
         [(0, {"a": -70, "b": -66}), (0.3, {"a": -70, "b": -66, "c": -60})], [(0.3, "c", Reason.STRONGER)]),
        ("the candidate gone, another still there: its time begins anew",
         [(0, {"a": -70, "b": -66}), (0.2, {"a": -70, "c": -66}), (0.3, {"a": -70, "c": -66}),
          (0.5, {"a": -70, "c": -66})], [(0.5, "c", Reason.STRONGER)]),
        ("lost coverage: no margin needed",
         [(0, {"a": -83, "b": -81}), (0.2, {"a": -83, "b": -81})], [(0.2, "b", Reason.LOST_COVERAGE)]),
        ("not heard any more", [(0, {"b": -80}), (0.2, {"b": -80})], [(0.2, "b", Reason.LOST_COVERAGE)]),
        ("weak for a moment only",
         [(0, {"a": -83, "b": -81}), (0.1, {"a": -81, "b": -81}), (0.2, {"a": -83, "b": -81})], []),
        ("nowhere to go, later given up",
         [(t / 10, {"a": -90, "b": -85}) for t in range(11)], [(1.0, "", Reason.OUT_OF_COVERAGE)]),
        ("a station below its sensitivity is none", [(t / 10, {"a": -81.9, "b": -82.5}) for t in range(9)], []),
        ("nothing heard at all", [(t / 10, {}) for t in range(11)], [(1.0, "", Reason.OUT_OF_COVERAGE)]),
    ],
)  # fmt: skip
def test_what_is_decided(what: str, measurements: list, decided: list) -> None:
    assert run(AT_A, *measurements)[1] == decided, what


def test_the_first_station_is_the_strongest_that_can_be_decoded_with_some_reserve() -> None:
    assert run(State(), (0, {"a": -81, "b": -90}))[1] == []
    assert run(State(), (0, {"a": -79, "b": -75}))[1] == [(0, "b", Reason.FIRST)]


def test_who_has_just_left_must_be_much_stronger_to_be_returned_to() -> None:
    state, _ = run(AT_A, (0, {"a": -70, "b": -66}), (0.3, {"a": -70, "b": -66}))
    back = {"a": -64, "b": -69}  # 5 dB: more than the margin, less than margin and guard
    assert run(state, *[(0.5 + t / 10, back) for t in range(40)])[1] == []
    assert run(state, *[(0.5 + t / 10, {"a": -60, "b": -69}) for t in range(4)])[1] == [(0.8, "a", Reason.STRONGER)]
    assert run(state, *[(6 + t / 10, back) for t in range(4)])[1] == [(6.3, "a", Reason.STRONGER)], "the guard is over"
    third = {"b": -69, "c": -65}
    assert run(state, *[(0.5 + t / 10, third) for t in range(4)])[1] == [(0.8, "c", Reason.STRONGER)]


def test_nothing_is_decided_while_a_handover_is_carried_out() -> None:
    state = begun(AT_A, "b")
    for t_s in (0.0, 1.0, 5.0):
        state, decision = step(RULE, SENSITIVITY, state, t_s, {"a": -95, "c": -40})
        assert decision is None
    assert finished(state, 6.0).serving == "b"


def test_a_target_that_failed_is_left_alone_for_a_while() -> None:
    state = failed(begun(AT_A, "b"), 1.0)
    assert state.serving == "a"
    better = {"a": -70, "b": -60}
    assert run(state, *[(1.1 + t / 10, better) for t in range(9)])[1] == []
    assert [each[1] for each in run(state, *[(3.0 + t / 10, better) for t in range(5)])[1]] == ["b"]


def test_a_clock_that_goes_back_begins_the_wait_anew() -> None:
    better = {"a": -70, "b": -60}
    assert run(AT_A, (100, better), (50, better), (50.2, better))[1] == []
    assert run(AT_A, (100, better), (50, better), (50.3, better))[1] == [(50.3, "b", Reason.STRONGER)]


levels = st.dictionaries(st.sampled_from("abc"), st.floats(-110, -20), max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1.0), levels), max_size=60))
def test_whatever_is_heard(steps: list[tuple[float, dict[str, float]]]) -> None:
    """A decision is for a station that can be decoded and is not the serving one; two never come closer together than
    the shorter of both waits."""
    state, t_s, last_s = AT_A, 0.0, -math.inf
    for gap_s, heard in steps:
        t_s += gap_s
        before = state
        state, decision = step(RULE, SENSITIVITY, state, t_s, heard)
        assert state.serving == before.serving
        if decision is None:
            continue
        if decision.target:
            assert heard[decision.target] >= SENSITIVITY[decision.target]
            assert decision.target != state.serving
        if decision.reason is Reason.STRONGER:
            assert heard[decision.target] > heard.get(state.serving or "", -math.inf) + RULE.margin_db
        if decision.reason is not Reason.FIRST:
            assert t_s - last_s >= 0.2 - 1e-9
        last_s = t_s
        state = finished(begun(state, decision.target), t_s) if decision.target else lost(state, t_s)


@settings(deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=20, max_size=200))
def test_two_that_are_nearly_equal_are_never_hopped_between(noise: list[float]) -> None:
    """Differences below the margin never lead to a handover, however they change."""
    state = AT_A
    for number, error in enumerate(noise):
        difference = max(-3.0, min(3.0, error))
        state, decision = step(RULE, SENSITIVITY, state, number * 0.1, {"a": -70.0, "b": -70.0 + difference})
        assert decision is None


def test_the_state_is_never_changed_in_place() -> None:
    state = replace(AT_A)
    step(RULE, SENSITIVITY, state, 1.0, {"a": -95, "b": -40})
    assert state == AT_A
    assert Decision("b", Reason.STRONGER) == Decision("b", Reason.STRONGER)
    assert handover.margin_to(RULE, State(serving="a", left="b", left_s=0.0), "b", 1.0) == 7


@pytest.mark.parametrize(("field", "value"), [("margin_db", -1), ("time_to_trigger_ms", math.nan),
                                              ("interruption_ms", 1e9), ("guard_s", -1)])  # fmt: skip
def test_impossible_rules_are_refused(field: str, value: float) -> None:
    with pytest.raises(BadInput, match=rf"\[radio.handover\]: {field} .* is not possible"):
        msgspec.structs.replace(RULE, **{field: value}).check("[radio.handover]")
