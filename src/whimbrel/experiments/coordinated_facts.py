"""What a walk showed, as figures: delays from the user's requests, downtime from handovers and decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median, pstdev

import msgspec

from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.radio import HandoverRecord, RequestTimes, UserEvent
from whimbrel.plan.downtime import ENOUGH

MARGIN_S = 10.0
"""So long before and after a handover Figure 6 shows; the paper shows 50 s."""


class Request(msgspec.Struct, frozen=True):
    """`delay_ms` None: never answered; `processing_ms` 0 where the service does not say."""

    sent_unix_s: float
    delay_ms: float | None
    processing_ms: float


class Gap(msgspec.Struct, frozen=True):
    """A time without service: `kind` is ``handover`` or ``migration``."""

    kind: str
    begins_unix_s: float
    lasts_s: float


class Walk(msgspec.Struct, frozen=True, kw_only=True):
    """One user's walk under one planner."""

    workload: str
    planner: str
    requests: tuple[Request, ...]
    gaps: tuple[Gap, ...]
    handovers: tuple[HandoverRecord, ...]
    decisions: tuple[Decision, ...]


def walk_of(workload: str, planner: str, events: Iterable[UserEvent], decisions: Sequence[Decision]) -> Walk:
    requests: list[Request] = []
    handovers: list[HandoverRecord] = []
    for event in events:
        if isinstance(event, RequestTimes) and event.protocol == "tcp":
            worked = event.processing_ms or (0.0,) * len(event.delays_ms)
            requests += map(Request, event.sent_unix_s, event.delays_ms, worked)
        elif isinstance(event, HandoverRecord) and not event.error:
            handovers.append(event)
    over = [one for one in decisions if one.state is not DecisionState.RUNNING]
    gaps = [Gap("handover", one.unix_s, one.interruption_ms / 1e3) for one in handovers]
    gaps += [Gap("migration", one.began_migration_unix_s, one.measured.migration_ms / 1e3)
             for one in over if one.measured is not None and one.began_migration_unix_s]  # fmt: skip
    return Walk(
        workload=workload,
        planner=planner,
        requests=tuple(requests),
        gaps=tuple(sorted(gaps, key=lambda gap: gap.begins_unix_s)),
        handovers=tuple(handovers),
        decisions=tuple(sorted(over, key=lambda one: one.made_unix_s)),
    )


def delay_facts(walk: Walk) -> dict[str, float]:
    """Figure 4: the mean delay and its parts, without the requests that met a gap: those are Figure 5's."""
    answered = [one for one in walk.requests if one.delay_ms is not None and not _in_gap(walk, one)]
    if not answered:
        return {}
    delays = [one.delay_ms for one in answered if one.delay_ms is not None]
    processing = fmean(one.processing_ms for one in answered)
    return {
        "delay": fmean(delays),
        "delay_sd": pstdev(delays),
        "processing": processing,
        "transmission": max(0.0, fmean(delays) - processing),
        "lost": float(sum(one.delay_ms is None for one in walk.requests)),
        "requests": float(len(walk.requests)),
    }


def downtime_facts(walk: Walk) -> list[dict[str, float]]:
    """Figure 5: for each handover the time without service, whatever the cause; and what the client noticed of it."""
    found = []
    for handover in walk.handovers:
        mine = [one for one in walk.decisions if _belongs(one, handover)]
        measured = next((one.measured for one in mine if one.measured is not None), None)
        facts = {
            "downtime": measured.interruption_ms if measured is not None else handover.interruption_ms,
            "handover": handover.interruption_ms,
            "migration": measured.migration_ms if measured is not None else 0.0,
        }
        errors = [one.prediction_error for one in mine if one.prediction_error is not None]
        if errors:
            facts["first_error"] = errors[0] * 100
            if all(_migrations_of(server, walk, mine[0]) >= ENOUGH for server in (mine[0].server, mine[0].from_server)):
                facts["prediction_error"] = errors[0] * 100
        if (noticed := _noticed_ms(walk, handover)) is not None:
            facts["noticed"] = noticed
        found.append(facts)
    return found


def _migrations_of(server: str, walk: Walk, before: Decision) -> int:
    """How many the walk had seen of a server's."""
    return sum(one.began_migration_unix_s > 0 and server in (one.server, one.from_server)
               for one in walk.decisions if one.made_unix_s < before.made_unix_s)  # fmt: skip


def excerpt(walk: Walk, around: HandoverRecord) -> tuple[list[Request], list[Gap]]:
    """What Figure 6 shows: the requests and gaps around a handover, all that belongs to it."""
    begin, end = around.unix_s - MARGIN_S, around.unix_s + MARGIN_S
    for one in walk.decisions:
        if _belongs(one, around) and one.began_migration_unix_s:
            begin, end = min(begin, one.began_migration_unix_s - 2), max(end, one.began_migration_unix_s + 2)
    return (
        [one for one in walk.requests if begin <= one.sent_unix_s <= end],
        [gap for gap in walk.gaps if begin <= gap.begins_unix_s <= end],
    )


def _belongs(decision: Decision, handover: HandoverRecord) -> bool:
    if decision.id == handover.order:
        return True
    follows_s = decision.made_unix_s - handover.unix_s
    return not handover.order and decision.base_station == handover.target and -1.0 <= follows_s <= 10.0


def _in_gap(walk: Walk, request: Request) -> bool:
    assert request.delay_ms is not None
    begin, end = request.sent_unix_s, request.sent_unix_s + request.delay_ms / 1e3
    return any(begin < gap.begins_unix_s + gap.lasts_s and end > gap.begins_unix_s for gap in walk.gaps)


def _noticed_ms(walk: Walk, handover: HandoverRecord) -> float | None:
    """By how much the requests that met the handover's gaps took longer than usual, all of them together: the client
    sends one after the other, so this is how long it went without."""
    requests, gaps = excerpt(walk, handover)
    usual = [one.delay_ms for one in requests if one.delay_ms is not None and not _in_gap(walk, one)]
    met = [one.delay_ms for one in requests if one.delay_ms is not None and _in_gap(walk, one)]
    if not usual or not met or not gaps:
        return None
    return sum(max(0.0, delay - median(usual)) for delay in met)
