"""What came of a decision: when the service and the radio link were away, and how far the prediction was off. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from msgspec.structs import replace

from whimbrel.model.decision import Decision, DecisionState, Times
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.model.radio import HandoverRecord
from whimbrel.plan.timing import interruption_s


def concluded(
    decision: Decision,
    migration: MigrationRecord | None,
    handover: HandoverRecord | None,
    *,
    clock_ahead_s: float = 0.0,
    error: str = "",
    cancelled: bool = False,
    now_unix_s: float,
) -> Decision:
    """The decision with what was measured. `handover.unix_s` is on the user's clock, `clock_ahead_s` ahead of ours."""
    moved = migration if migration is not None and migration.outcome is Outcome.DONE else None
    changed = handover if handover is not None and not handover.error else None
    frozen_s, freeze_s = frozen(moved) if moved is not None else (0.0, 0.0)
    gone_s = changed.unix_s - clock_ahead_s if changed is not None else 0.0
    away_s = changed.interruption_ms / 1e3 if changed is not None else 0.0
    whole_s = (
        interruption_s(frozen_s, freeze_s, gone_s, away_s)
        if moved is not None and changed is not None
        else freeze_s + away_s
    )
    measured = None
    if moved is not None or changed is not None:
        measured = Times(
            pre_migration_ms=round((frozen_s - moved.started_unix_s) * 1e3, 3) if moved is not None else 0.0,
            migration_ms=round(freeze_s * 1e3, 3),
            handover_ms=changed.interruption_ms if changed is not None else 0.0,
            interruption_ms=round(whole_s * 1e3, 3),
        )
    predicted_ms = decision.predicted.migration_ms
    off = abs(predicted_ms - freeze_s * 1e3) / (freeze_s * 1e3) if freeze_s > 0 else None
    state = DecisionState.CANCELLED if cancelled else DecisionState.FAILED if error else DecisionState.DONE
    return replace(
        decision,
        measured=measured,
        prediction_error=None if off is None else round(off, 4),
        began_pre_migration_unix_s=moved.started_unix_s if moved is not None else 0.0,
        began_migration_unix_s=frozen_s,
        began_handover_unix_s=gone_s,
        state=state,
        error=error,
        ended_unix_s=now_unix_s,
    )


def frozen(record: MigrationRecord) -> tuple[float, float]:
    """When packets began to wait for the service (unix, s), and for how long (s): hold and freeze."""
    start_ms = {phase.name: phase.start_ms for phase in record.phases}
    took_ms = {phase.name: phase.duration_ms for phase in record.phases}
    begins_ms = start_ms.get("freeze.hold", start_ms.get("freeze", 0.0))
    return record.started_unix_s + begins_ms / 1e3, (took_ms.get("freeze.hold", 0.0) + record.freeze_ms) / 1e3


KEPT = 20
MOST_LAG_S = 0.5
"""More than this is no lag: something was in the way."""
USUAL_START_S = 0.3


def start_lag_s(decisions: Iterable[Decision]) -> float:
    """From the time at which a pre-migration is to begin until the source's agent has it: the checks before."""
    lags = [one.began_pre_migration_unix_s - one.pre_migration_at_unix_s
            for one in decisions if one.began_pre_migration_unix_s and one.pre_migration_at_unix_s]  # fmt: skip
    return max(0.0, median(lags[-KEPT:])) if lags else USUAL_START_S


def freeze_lags_s(decisions: Iterable[Decision]) -> dict[str, float]:
    """By how much later than it is told to each server freezes (earlier: below 0), and by "" any of them: the way of
    the order, and what an agent does first. Who waits for its memory freezes later than that, never sooner: so it is
    the lower quartile."""
    lags: dict[str, list[float]] = {"": []}
    for one in decisions:
        if one.began_migration_unix_s and one.migration_at_unix_s:
            late_s = one.began_migration_unix_s - one.migration_at_unix_s
            if abs(late_s) <= MOST_LAG_S:
                for name in ("", one.from_server):
                    lags.setdefault(name, []).append(late_s + one.freeze_ahead_ms / 1e3)
    return {name: _lower_quartile(each[-KEPT:]) for name, each in lags.items() if each}


def _lower_quartile(found: list[float]) -> float:
    return sorted(found)[(len(found) - 1) // 4]
