"""The rounds: memory crosses while the service runs, until it is time for the freeze."""

from __future__ import annotations

from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.choosing import third_choice
from whimbrel.migrate.job import Migration
from whimbrel.migrate.parts import Parts
from whimbrel.model.migration import MigrationRequest, Progress, Round
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.convergence import LONG_FREEZE_MS, Limits, RoundFacts, Stop, decide, predicted_freeze_ms
from whimbrel.plan.freeze_limit import freeze_limit_s, left_to_cross_bytes
from whimbrel.plan.strategies import AUTO, Carry

LOOK_MS = 200.0
"""So often who waits for the freeze's time looks whether it was moved."""
REFRESH_MS = 1000.0
"""While a known handover is still far, what is written meanwhile crosses this often."""


async def run_rounds(job: Migration, parts: Parts) -> float:
    """Rounds until they have done what they can and, where the time of the handover is known, no other is over before
    it. Returns how long the freeze is predicted to take, ms."""
    limits = Limits(
        max_rounds=job.request.max_rounds or parts.strategy.rounds.limit,
        max_downtime_ms=job.request.max_downtime_ms,
        deadline_ms=job.request.deadline_ms,
        converge=parts.strategy.rounds.converge,
    )
    facts: list[RoundFacts] = [await _one_round(job, parts, 1)]
    hopeless = third_choice(job, parts.strategy, facts[0])
    verdict = decide(facts, limits, elapsed_ms=job.now_ms())
    while verdict is Stop.GO_ON and not hopeless:
        facts.append(await _one_round(job, parts, len(facts) + 1))
        verdict = decide(facts, limits, elapsed_ms=job.now_ms(), due=(job.freeze_left_ms or 0.0) < 0.0)
    if parts.strategy.rounds.converge:
        await _keep_fresh(job, parts, facts, limits)
    freeze_ms = predicted_freeze_ms(facts, limits)
    why = "more rounds would not help" if verdict is Stop.GO_ON else verdict
    job.say(f"{why} after {len(facts)} round{'s' if len(facts) > 1 else ''}; freeze predicted {freeze_ms:.0f} ms")
    if job.request.strategy != AUTO or not parts.strategy.lazy:
        return freeze_ms
    limit_ms, name = _long_freeze(job.request, hurried=hopeless or verdict is Stop.DEADLINE)
    if limit_ms:  # also where that seems to be long enough: a program may write more in its last moments
        parts.carrier.leave_behind()
        job.long_freeze_ms = limit_ms
    if 0 < limit_ms < freeze_ms:
        job.say(f"that is over {name}, so what has not crossed by then follows the resume")
    return freeze_ms


async def _keep_fresh(job: Migration, parts: Parts, facts: list[RoundFacts], limits: Limits) -> None:
    """A handover that is still far: rounds keep the destination as fresh as it is. Whether a next one has the time for
    that, the last tells."""
    job.emit(Progress(migration=job.request.id, phase="rounds", detail="ready for the freeze", ready=True))
    while (left_ms := _time_left_ms(job, predicted_freeze_ms(facts, limits)) - facts[-1].duration_ms) > 0:
        await job.wait_for_freeze(min(left_ms, REFRESH_MS))
        facts.append(await _one_round(job, parts, len(facts) + 1))


def _long_freeze(request: MigrationRequest, *, hurried: bool) -> tuple[float, str]:
    """From when on a freeze is so long that what is dirty had better follow the resume, and in whose name; 0: never.
    `hurried`: rounds ended before they had done what they can."""
    if request.max_downtime_ms:
        return request.max_downtime_ms, "--max-downtime"
    if request.handover_ms:  # nobody misses the service while the user is away
        limit_ms = max(request.handover_ms, LONG_FREEZE_MS)
        return limit_ms, f"the {limit_ms:.0f} ms of the handover"
    return (LONG_FREEZE_MS, f"{LONG_FREEZE_MS:.0f} ms") if hurried else (0.0, "")


async def until_handover(job: Migration, lead_ms: float) -> None:
    """Nothing is left to do before the freeze, which is to begin so long before the handover: wait for its time."""
    while (left_ms := _time_left_ms(job, lead_ms)) > 0:
        told = f"freeze in {left_ms / 1e3:.1f} s"
        job.emit(Progress(migration=job.request.id, phase="rounds", detail=told, ready=True))
        await job.wait_for_freeze(min(left_ms, LOOK_MS))
    job.freeze_begun = True


def _time_left_ms(job: Migration, lead_ms: float) -> float:
    """Until the freeze must begin for the service to be there when the user is; 0 when nobody knows."""
    if job.freeze_left_ms is not None:
        return job.freeze_left_ms
    return job.request.handover_in_ms - lead_ms - job.now_ms() if job.request.handover_in_ms > 0 else 0.0


async def longest_freeze_s(job: Migration, parts: Parts) -> float:
    """Nothing is left to do before the freeze: how long it may last before it counts as hung."""
    memory_bytes = job.source.status.rss_bytes
    crossing_bytes = left_to_cross_bytes(
        [RoundFacts(dirty_bytes=turn.raw_bytes, duration_ms=turn.duration_ms) for turn in job.rounds],
        memory_bytes=0 if parts.strategy.behind else memory_bytes,
        files_bytes=parts.files.last_pass_bytes,
        converge=parts.strategy.rounds.converge,
    )
    rate = await _link_bytes_per_s(job, parts)
    limit = job.request.bandwidth_bps / 8 or rate
    return freeze_limit_s(crossing_bytes, memory_bytes=memory_bytes, link_bytes_per_s=min(rate, limit))


async def _link_bytes_per_s(job: Migration, parts: Parts) -> float:
    """As the rounds had it. The link is asked, while the service writes on, only where they say little: on the stream
    pages may be coded to next to nothing."""
    took_s = sum(turn.duration_ms for turn in job.rounds) / 1e3
    raw_bytes = sum(turn.raw_bytes + turn.file_bytes for turn in job.rounds)
    sent_bytes = sum(turn.bytes_sent for turn in job.rounds)
    if took_s and parts.strategy.carry is not Carry.STREAM:
        return raw_bytes / took_s
    if took_s and sent_bytes >= raw_bytes / 4:
        return sent_bytes / took_s
    return job.link_bytes_per_s or await parts.hands.do(parts.channel.measure_bytes_per_s)


async def _one_round(job: Migration, parts: Parts, number: int) -> RoundFacts:
    start = job.now_ms()
    carried = await parts.hands.do(parts.carrier.round, number)
    file_bytes = await parts.hands.do(parts.files.round)
    took_ms = job.now_ms() - start
    job.rounds.append(round_of(number, carried, took_ms, file_bytes))
    if carried.remark and carried.remark not in job.reason:
        job.say(carried.remark)
    _add_parts(job, f"round.{number}", carried)
    job.emit(Progress(migration=job.request.id, phase="rounds", detail=f"round {number}: {carried.pages} pages"))
    left_bytes = await parts.hands.do(parts.carrier.dirty_bytes)
    return RoundFacts(
        dirty_bytes=carried.pages * PAGE_BYTES + file_bytes,
        duration_ms=took_ms,
        left_bytes=None if left_bytes is None else left_bytes + file_bytes,  # of files as much again
    )


def _add_parts(job: Migration, name: str, carried: Carried) -> None:
    """What a round was made of, for the record: laid end to end back from now."""
    start_ms = job.now_ms() - sum(taken_ms for _, taken_ms in carried.parts_ms)
    for part, taken_ms in carried.parts_ms:
        job.add_phase(f"{name}.{part}", start_ms, taken_ms)
        start_ms += taken_ms


def round_of(number: int, carried: Carried, took_ms: float, file_bytes: int) -> Round:
    return Round(
        n=number,
        dirty_pages=carried.pages,
        bytes_sent=carried.sent_bytes + file_bytes,
        duration_ms=round(took_ms, 3),
        raw_bytes=carried.pages * PAGE_BYTES,
        zero_pages=carried.zero_pages,
        codec=carried.codec,
        file_bytes=file_bytes,
    )
