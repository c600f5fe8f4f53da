"""When a user is handed over: relative RSSI with hysteresis (paper `coordinated`, IV-B; 3GPP event A3, TS 38.331 clause
5.5.4.4), lost coverage, and a guard against ping-pong.

A state and a measurement give the next state and perhaps a decision; nothing else is remembered anywhere. Whoever
carries decisions out says so by `begun`, then `finished` or `failed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from whimbrel.model.errors import BadInput


class InFlight(StrEnum):
    """What becomes of packets on the air while a handover interrupts it: they wait on both sides of the gap, as in a
    cellular network (3GPP TS 36.300, clause 10.1.2.3), or they are lost, as with a plain Wi-Fi access point."""

    HOLD = "hold"
    DROP = "drop"


class HandoverRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`margin_db` by which another station must be stronger, for `time_to_trigger_ms` on end. `lost_after_ms`: how long
    the serving one may lie below its sensitivity until any better station will do. Within `guard_s` after a handover
    the station just left must be stronger by `guard_margin_db` more. `retry_s`: how long a target that failed is left
    alone. With nothing better to be heard the link is given up after `drop_after_ms` (T310 of 3GPP TS 38.331), and
    taken up again with a station that is `regain_db` above its sensitivity. `interruption_ms`: how long nothing passes
    during a handover; 500 is the paper's."""

    margin_db: float = 4.0
    time_to_trigger_ms: float = 320.0
    lost_after_ms: float = 200.0
    guard_s: float = 5.0
    guard_margin_db: float = 3.0
    retry_s: float = 2.0
    drop_after_ms: float = 1000.0
    regain_db: float = 2.0
    interruption_ms: float = 500.0
    in_flight: InFlight = InFlight.HOLD

    def check(self, what: str) -> None:
        """Raises BadInput, naming `what` and the field."""
        limits = {
            "margin_db": (0.0, 40.0),
            "time_to_trigger_ms": (0.0, 10_000.0),
            "lost_after_ms": (0.0, 10_000.0),
            "guard_s": (0.0, 3600.0),
            "guard_margin_db": (0.0, 40.0),
            "retry_s": (0.0, 3600.0),
            "drop_after_ms": (0.0, 60_000.0),
            "regain_db": (0.0, 40.0),
            "interruption_ms": (0.0, 30_000.0),
        }
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if not low <= value <= high:  # also refuses NaN
                raise BadInput(f"{what}: {field} {value:g} is not possible: use {low:g} to {high:g}")


class Reason(StrEnum):
    STRONGER = "stronger"
    LOST_COVERAGE = "lost-coverage"
    FIRST = "first"
    ORDERED = "ordered"
    OUT_OF_COVERAGE = "out-of-coverage"


@dataclass(frozen=True)
class Decision:
    """`target` is empty when there is nowhere to go (`OUT_OF_COVERAGE`)."""

    target: str
    reason: Reason


@dataclass(frozen=True)
class State:
    """`serving` None: no coverage. `candidate` has been stronger since `candidate_since_s`; the serving station below
    its sensitivity since `weak_since_s`. `target`: the handover that is being carried out. `left`: the station before
    this one, left at `left_s`. `failed_target` failed at `failed_s`."""

    serving: str | None = None
    candidate: str | None = None
    candidate_since_s: float = 0.0
    weak_since_s: float | None = None
    target: str | None = None
    left: str | None = None
    left_s: float = 0.0
    failed_target: str | None = None
    failed_s: float = 0.0


def step(
    rule: HandoverRule, sensitivity_dbm: Mapping[str, float], state: State, t_s: float, rssi_dbm: Mapping[str, float]
) -> tuple[State, Decision | None]:
    """One measurement: filtered RSSI (finite, dBm) of all stations heard at `t_s`. Time that went back begins every
    wait anew; it never shortens one."""
    state = _not_ahead_of(state, t_s)
    if state.target is not None:
        return state, None
    usable = {name: level for name, level in rssi_dbm.items()
              if level >= sensitivity_dbm[name] and not _is_barred(rule, state, name, t_s)}  # fmt: skip
    if state.serving is None:
        best = _strongest({name: level for name, level in usable.items()
                           if level >= sensitivity_dbm[name] + rule.regain_db})  # fmt: skip
        return state, None if best is None else Decision(best, Reason.FIRST)
    own_dbm = rssi_dbm.get(state.serving)
    is_weak = own_dbm is None or own_dbm < sensitivity_dbm[state.serving]
    others = {name: level for name, level in usable.items() if name != state.serving}
    state = replace(state, weak_since_s=_since(state.weak_since_s, t_s) if is_weak else None)
    if is_weak and _has_lasted(state.weak_since_s, t_s, rule.lost_after_ms):
        # any station that can be decoded is better than one that cannot
        best = _strongest(others)
        if best is not None:
            return state, Decision(best, Reason.LOST_COVERAGE)
        if _has_lasted(state.weak_since_s, t_s, rule.drop_after_ms):
            return state, Decision("", Reason.OUT_OF_COVERAGE)
    stronger = {
        name: level
        for name, level in others.items()
        if own_dbm is None or level > own_dbm + margin_to(rule, state, name, t_s)
    }
    if not stronger:
        return replace(state, candidate=None), None
    if state.candidate not in stronger:
        state = replace(state, candidate=_strongest(stronger), candidate_since_s=t_s)
    if _has_lasted(state.candidate_since_s, t_s, rule.time_to_trigger_ms):
        # of several that are all better, the one that is best now
        return state, Decision(_strongest(stronger) or "", Reason.STRONGER)
    return state, None


def margin_to(rule: HandoverRule, state: State, name: str, t_s: float) -> float:
    """By how many dB the station must be stronger now."""
    returns = name == state.left and t_s - state.left_s < rule.guard_s
    return rule.margin_db + (rule.guard_margin_db if returns else 0.0)


def begun(state: State, target: str) -> State:
    """A handover to `target` is being carried out: nothing is decided until it is over."""
    return replace(state, target=target, candidate=None)


def finished(state: State, t_s: float) -> State:
    """The user is at the target now."""
    return State(serving=state.target, left=state.serving, left_s=t_s)


def lost(state: State, t_s: float) -> State:
    """The user is nowhere now."""
    return State(left=state.serving, left_s=t_s)


def failed(state: State, t_s: float) -> State:
    """The user is where it was; the target is left alone for a while."""
    return replace(state, target=None, failed_target=state.target, failed_s=t_s)


def _since(earlier_s: float | None, t_s: float) -> float:
    return t_s if earlier_s is None else earlier_s


def _has_lasted(since_s: float | None, t_s: float, time_ms: float) -> bool:
    return since_s is not None and (t_s - since_s) * 1000 >= time_ms - 1e-6


def _is_barred(rule: HandoverRule, state: State, name: str, t_s: float) -> bool:
    return name == state.failed_target and t_s - state.failed_s < rule.retry_s


def _strongest(levels: Mapping[str, float]) -> str | None:
    return max(levels, key=lambda name: (levels[name], name)) if levels else None


def _not_ahead_of(state: State, t_s: float) -> State:
    return replace(
        state,
        candidate_since_s=min(state.candidate_since_s, t_s) if state.candidate else 0.0,
        weak_since_s=None if state.weak_since_s is None else min(state.weak_since_s, t_s),
        left_s=min(state.left_s, t_s),
        failed_s=min(state.failed_s, t_s),
    )
