"""What a walk showed, as figures: delays from the user's requests, downtime from handovers and decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
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
    gaps += [gap for one in over if (gap := _migration_of(one)) is not None]
    return Walk(
        workload=workload,
        planner=planner,
        requests=tuple(sorted(requests, key=lambda one: one.sent_unix_s)),
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
    """Figure 5: for each handover the time without service, whatever the cause; and what the client noticed of it.

    Every migration counts, whichever decision made it: with the handover that it was ordered with, else with the last
    one before it. `migrated`: whether one came to its end at all; `with_migration` is the downtime of those handovers
    only."""
    found = []
    followed = _followed(walk)
    for number, handover in enumerate(walk.handovers):
        mine = [one for one in walk.decisions if _belongs(one, handover)]
        migrations = [gap for gap, of in followed if of == number]
        own = Gap("handover", handover.unix_s, handover.interruption_ms / 1e3)
        facts = {
            "downtime": _together_ms([own, *migrations]),
            "handover": handover.interruption_ms,
            "migration": sum(gap.lasts_s for gap in migrations) * 1e3,
            "migrated": float(bool(migrations)),
        }
        if migrations:
            facts["with_migration"] = facts["downtime"]
        errors = [one.prediction_error for one in mine if one.prediction_error is not None]
        if errors:
            facts["first_error"] = errors[0] * 100
            if all(_migrations_of(server, walk, mine[0]) >= ENOUGH for server in (mine[0].server, mine[0].from_server)):
                facts["prediction_error"] = errors[0] * 100
        if (noticed := _noticed_ms(walk, handover, [own, *migrations])) is not None:
            facts["noticed"] = noticed
            if migrations:
                facts["noticed_with_migration"] = noticed
        found.append(facts)
    return found


def walk_facts(walk: Walk) -> dict[str, float]:
    """Figure 5 as the paper has it: the downtime of the whole walk, whatever belongs to what."""
    return {
        "walk_downtime": _together_ms(walk.gaps),
        "handovers": float(len(walk.handovers)),
        "migrations": float(sum(gap.kind == "migration" for gap in walk.gaps)),
    }


def _followed(walk: Walk) -> list[tuple[Gap, int]]:
    """Each migration with the number of the handover that it counts with. Before the first one there is none to count
    it with: the walk's sum has it."""
    ordered = {one.order: number for number, one in enumerate(walk.handovers) if one.order}
    found = []
    for one in walk.decisions:
        if (gap := _migration_of(one)) is None:
            continue
        before = [number for number, handover in enumerate(walk.handovers) if handover.unix_s <= gap.begins_unix_s]
        number = ordered.get(one.id, before[-1] if before else None)
        if number is not None:
            found.append((gap, number))
    return found


def _migration_of(decision: Decision) -> Gap | None:
    if decision.measured is None or not decision.began_migration_unix_s:
        return None
    return Gap("migration", decision.began_migration_unix_s, decision.measured.migration_ms / 1e3)


def _together_ms(gaps: Iterable[Gap]) -> float:
    """How long at least one of them lasts."""
    whole_s, until_s = 0.0, float("-inf")
    for gap in sorted(gaps, key=lambda one: one.begins_unix_s):
        end_s = gap.begins_unix_s + gap.lasts_s
        whole_s += max(0.0, end_s - max(gap.begins_unix_s, until_s))
        until_s = max(until_s, end_s)
    return round(whole_s * 1e3, 3)


def _migrations_of(server: str, walk: Walk, before: Decision) -> int:
    """How many the walk had seen of a server's."""
    return sum(one.began_migration_unix_s > 0 and server in (one.server, one.from_server)
               for one in walk.decisions if one.made_unix_s < before.made_unix_s)  # fmt: skip


def excerpt(walk: Walk, around: HandoverRecord) -> tuple[list[Request], list[Gap]]:
    """What Figure 6 shows: the requests and gaps around a handover, all that belongs to it."""
    begin, end = around.unix_s - MARGIN_S, around.unix_s + MARGIN_S
    for gap, number in _followed(walk):
        if walk.handovers[number] == around:
            begin, end = min(begin, gap.begins_unix_s - 2), max(end, gap.begins_unix_s + gap.lasts_s + 2)
    return (
        [one for one in walk.requests if begin <= one.sent_unix_s <= end],
        [gap for gap in walk.gaps if begin <= gap.begins_unix_s <= end],
    )


def _belongs(decision: Decision, handover: HandoverRecord) -> bool:
    if decision.id == handover.order:
        return True
    follows_s = decision.made_unix_s - handover.unix_s
    return not handover.order and decision.base_station == handover.target and -1.0 <= follows_s <= 10.0


def _met(gaps: Iterable[Gap], request: Request, lasts_s: float) -> bool:
    begin, end = request.sent_unix_s, request.sent_unix_s + lasts_s
    return any(begin < gap.begins_unix_s + gap.lasts_s and end > gap.begins_unix_s for gap in gaps)


def _in_gap(walk: Walk, request: Request) -> bool:
    assert request.delay_ms is not None
    return _met(walk.gaps, request, request.delay_ms / 1e3)


def _noticed_ms(walk: Walk, handover: HandoverRecord, mine: Sequence[Gap]) -> float | None:
    """By how much the requests that met the handover's gaps took longer than usual, all of them together: the client
    sends one after the other, so this is how long it went without. One that was never answered took until the next."""
    requests, _ = excerpt(walk, handover)
    usual = [one.delay_ms for one in requests if one.delay_ms is not None and not _in_gap(walk, one)]
    waits_s = [later.sent_unix_s - one.sent_unix_s if one.delay_ms is None else one.delay_ms / 1e3
               for one, later in pairwise(requests)]  # fmt: skip
    waits_s += [one.delay_ms / 1e3 for one in requests[-1:] if one.delay_ms is not None]
    met = [wait_s for one, wait_s in zip(requests, waits_s, strict=False) if _met(mine, one, wait_s)]
    if not usual or not met:
        return None
    return sum(max(0.0, wait_s * 1e3 - median(usual)) for wait_s in met)
