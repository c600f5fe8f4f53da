"""From a plan's assignment to a decision with its times and its reason. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import msgspec

from whimbrel.controller.planning.due import Due
from whimbrel.model.application import Session
from whimbrel.model.decision import Decision, Times
from whimbrel.model.placement import Assignment, PlanFigures
from whimbrel.plan.timing import Durations, Order, Timing, trigger

NOTICE_S = 0.6
"""So long before its time an order must be on its way to the user, which hears answers to its reports only."""


@dataclass(frozen=True)
class Wish:
    """What a plan wants of one user: `serving` is where it is, `preparation_ms` what a migration needs beside the
    memory's transfer before its freeze. `due` None: the radio wants nothing, and a handover is the planner's own wish,
    which can wait for `patience_s`."""

    session: Session
    assignment: Assignment
    serving: str
    due: Due | None
    preparation_ms: float
    handover_ms: float
    patience_s: float = 0.0

    @property
    def hands_over(self) -> bool:
        """It is not there yet."""
        return self.assignment.base_station != self.serving

    @property
    def migrates(self) -> bool:
        return self.assignment.migrates

    def without_migration(self) -> Wish:
        """The same, and the service stays where it is."""
        assignment = msgspec.structs.replace(self.assignment, server=self.assignment.from_server)
        return dataclasses.replace(self, assignment=assignment, preparation_ms=0.0)

    @property
    def latest_s(self) -> float:
        """Until when, from now, the handover can wait for the memory."""
        return self.due.latest_s if self.due is not None else self.patience_s

    @property
    def durations(self) -> Durations:
        one = self.assignment
        return Durations(
            pre_migration_s=(one.pre_migration_ms + self.preparation_ms) / 1e3 if self.migrates else 0.0,
            migration_s=one.migration_ms / 1e3 if self.migrates else 0.0,
            handover_s=self.handover_ms / 1e3 if self.hands_over else 0.0,
        )


def timing_of(wish: Wish, order: Order, now_s: float) -> Timing:
    """When each part begins. Without a handover to come everything may begin at once."""
    due = wish.due if wish.hands_over else None
    return trigger(
        order,
        wish.durations,
        handover_at_s=now_s + (due.in_s if due is not None else 0.0),
        now_s=now_s,
        latest_handover_s=now_s + wish.latest_s if wish.hands_over else None,
        notice_s=NOTICE_S,
    )


def begins_at_s(wish: Wish, timing: Timing) -> float:
    """When the first thing is to be done."""
    times = [timing.pre_migration_at_s] if wish.migrates else []
    times += [timing.handover_at_s] if wish.hands_over else []
    return min(times)


def decision_of(
    wish: Wish, timing: Timing, *, decision_id: str, planner: str, now_unix_s: float, plan: PlanFigures | None = None
) -> Decision:
    """`timing` on the wall clock; `plan`: what it is of."""
    one, durations = wish.assignment, wish.durations
    came = bool(one.from_base_station) and one.base_station != one.from_base_station
    return Decision(
        id=decision_id,
        user=one.user,
        service=wish.session.service,
        planner=planner,
        order=timing.order.value,
        reason=reason_of(wish, timing),
        made_unix_s=now_unix_s,
        from_base_station=one.from_base_station if came else wish.serving,
        base_station=one.base_station,
        from_server=one.from_server,
        server=one.server,
        delay_ms=round(one.delay.total_ms, 3),
        predicted=Times(
            pre_migration_ms=round(durations.pre_migration_s * 1e3, 3),
            migration_ms=round(durations.migration_s * 1e3, 3),
            handover_ms=round(durations.handover_s * 1e3, 3),
            interruption_ms=round(timing.interruption_s * 1e3, 3),
        ),
        pre_migration_at_unix_s=timing.pre_migration_at_s if wish.migrates else 0.0,
        migration_at_unix_s=timing.migration_at_s if wish.migrates else 0.0,
        handover_at_unix_s=timing.handover_at_s if wish.hands_over else 0.0,
        late_by_ms=round(timing.late_by_s * 1e3, 3),
        plan_gap=plan.gap if plan is not None else None,
        plan_by=plan.by if plan is not None else "",
    )


def reason_of(wish: Wish, timing: Timing) -> str:
    """One line: what sets it off, what it brings, and how it is timed."""
    one, parts = wish.assignment, []
    if wish.hands_over:
        parts.append(wish.due.why if wish.due is not None else f"{one.base_station} serves it better")
    elif one.hands_over:
        parts.append(f"the radio handed over to {one.base_station}")
    if wish.migrates:
        parts.append(f"{one.server} answers in {one.delay.total_ms:.1f} ms (predicted)")
    elif one.hands_over:
        parts.append(f"the service stays on {one.server}")
    if wish.migrates and wish.hands_over:
        parts.append(f"{timing.order}: an interruption of {timing.interruption_s * 1e3:.0f} ms")
    if timing.late_by_s > 0 and wish.hands_over:
        parts.append(f"{timing.late_by_s:.1f} s too late for the handover")
    return "; ".join(parts)
