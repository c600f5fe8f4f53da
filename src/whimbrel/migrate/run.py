"""One migration, told by its source from request to finish.

preflight   everything that can be known before anything happens; nothing is touched yet
prepare     the destination makes itself ready; the gateways make room; CRIU waits on both sides
rounds      memory and files cross while the service runs
freeze      packets are held, the service stops, the last pages and CRIU's images cross, it is restored
            ---- commit: GO; before it everything is undone on any failure, after it there is only forward
switch      the destination announces the address and the held packets go there (told by RUNNING)
finish      the rest of the pages arrive in the background, the source is removed

The last three are in `commit`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog

from whimbrel.migrate.carriers.choose import make_carrier
from whimbrel.migrate.choosing import first_choice, possible_choice, second_choice, storage_needed
from whimbrel.migrate.commit import commit, follow_through
from whimbrel.migrate.dump import DUMP_PREFIX, Dump
from whimbrel.migrate.files import files_of, room_for_files
from whimbrel.migrate.freeze import freeze_and_restore
from whimbrel.migrate.gateways import Gateways
from whimbrel.migrate.job import Hands, Migration
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.migrate.parts import Parts
from whimbrel.migrate.preflight import check_offer
from whimbrel.migrate.pushimage import bring_image
from whimbrel.migrate.rounds import longest_freeze_s, run_rounds, until_handover
from whimbrel.migrate.staging.shared import close_stage, open_stage, stage_below
from whimbrel.model.errors import Cancelled, Refused, StepFailed, WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.plan.convergence import worth_waiting_ms
from whimbrel.plan.strategies import AUTO, Carry, Strategy
from whimbrel.wire.calls import AbortIncoming, IncomingReady, OfferMigration, OfferReply, PrepareIncoming
from whimbrel.wire.rpc import Peer

log = structlog.get_logger()


async def migrate(job: Migration) -> MigrationRecord:
    """Carry out a migration. Never raises for a failure of the migration: the record tells."""
    job.belongs_to_this_task()
    try:
        async with contextlib.AsyncExitStack() as undo:
            with _own_cancellation(job):
                peer = await undo.enter_async_context(
                    Peer(job.destination.name, job.destination.host, job.destination.port)
                )
                async with job.phase("preflight"):
                    strategy = await _preflight(job, peer)
                if job.request.dry_run:
                    job.reason = "dry run: everything that can be checked before the freeze is in order"
                    return job.record(Outcome.DRY_RUN)
                await _move(job, strategy, peer, undo)
        return job.record(Outcome.DONE)
    except WhimbrelError as error:
        outcome = Outcome.CANCELLED if isinstance(error, Cancelled) else Outcome.ROLLED_BACK
        return job.record(Outcome.FAILED if job.committed else outcome, error)
    except OSError as error:
        return job.record(*_failed(job, str(error)))
    except Exception as error:  # a mistake of ours: it must not take the record with it
        log.exception("a migration met an error that nobody expected", id=job.request.id)
        return job.record(*_failed(job, f"internal error, see the agent's log: {type(error).__name__}: {error}"))


def _failed(job: Migration, why: str) -> tuple[Outcome, WhimbrelError]:
    outcome = Outcome.FAILED if job.committed else Outcome.ROLLED_BACK
    return outcome, StepFailed(f"a step failed on {job.node.endpoint.name}: {why}")


@contextlib.contextmanager
def _own_cancellation(job: Migration) -> Any:
    try:
        yield
    except asyncio.CancelledError:
        if not job.cancelled:
            raise
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        raise Cancelled("cancelled on request; the service runs on where it was") from None


async def _preflight(job: Migration, peer: Peer) -> Strategy:
    """Raises Refused for whatever can be known to be in the way. Returns the strategy, as far as it is known now."""
    strategy = await first_choice(job, peer)
    job.strategy = strategy.name
    status = job.source.status
    departure = job.source.departure
    offer = await peer.call(
        OfferMigration(
            spec=status.spec,
            rss_bytes=status.rss_bytes,
            image_digest=status.image_digest,
            description=departure.description,
            shared=storage_needed(job, strategy),
        )
    )
    if job.request.strategy == AUTO or not await _fits(job, offer, exact=False):
        await _fits(job, offer, exact=True)
    return possible_choice(job, strategy, offer)


async def _fits(job: Migration, offer: OfferReply, *, exact: bool) -> bool:
    """Whether the destination has the room. To look at all files takes 0.2 s where there are 20,000: unless ``auto``
    predicts by them, it is first asked whether all would fit that lies on their file systems. Raises Refused if it does
    not fit, and that is `exact`."""
    room = await asyncio.to_thread(room_for_files, job.source, with_image=not offer.has_image, exact=exact)
    try:
        check_offer(
            job.node.capabilities,
            offer,
            rss_bytes=job.source.status.rss_bytes,
            files=room,
            where=job.destination.name,
        )
    except Refused:
        if exact:
            raise
        return False
    if exact:
        job.files_bytes = room.disk_bytes + room.memory_bytes
    return True


async def _move(job: Migration, strategy: Strategy, peer: Peer, outer: contextlib.AsyncExitStack) -> None:
    async with contextlib.AsyncExitStack() as undo:
        async with job.phase("prepare"):
            await bring_image(job, peer)
            parts = await _prepare(job, strategy, peer, outer, undo)
        async with job.phase("rounds"):
            begun_ms = job.now_ms()
            await parts.hands.do(parts.files.ahead)
            job.add_phase("rounds.files", begun_ms, job.now_ms() - begun_ms)
            predicted_ms = await run_rounds(job, parts) if parts.strategy.rounds.limit else 0.0
            quiet_s = _quiet_s(job, parts.strategy, predicted_ms)
            limit_s = await longest_freeze_s(job, parts) + 2 * quiet_s
            await until_handover(job, predicted_ms if parts.strategy.rounds.converge else 0.0)
        async with job.phase("freeze"), parts.gateways.kept():
            try:
                async with asyncio.timeout(limit_s):
                    await freeze_and_restore(job, parts, quiet_s)
            except TimeoutError:
                raise StepFailed(f"the freeze was not over within {limit_s:.0f} s: CRIU or a process hangs") from None
            resume_here = await commit(job, parts, undo)
        job.count_bytes(parts.carrier.sent_bytes, parts.files.sent_bytes)
    await follow_through(job, parts, resume_here)


def _quiet_s(job: Migration, strategy: Strategy, freeze_ms: float) -> float:
    """How long the freeze, predicted so long, may wait for a moment in which nobody in the service works. Not where it
    is to begin at a time, nor where its pages do not lengthen it; and the papers' own ways take no steps but theirs."""
    timed = job.request.handover_in_ms > 0 or job.freeze_left_ms is not None
    if timed or 0 < job.long_freeze_ms < freeze_ms or not (strategy.lazy and strategy.rounds.converge):
        return 0.0
    deadline_ms = job.request.deadline_ms
    left_ms = max(1.0, deadline_ms - job.now_ms()) if deadline_ms else 0.0
    return worth_waiting_ms(freeze_ms, job.request.max_downtime_ms, left_ms) / 1e3


async def _prepare(
    job: Migration, strategy: Strategy, peer: Peer, outer: contextlib.AsyncExitStack, undo: contextlib.AsyncExitStack
) -> Parts:
    """Everything ready on both sides; `undo` takes it away again, in the order that the freeze wants."""
    hands = Hands()
    source = job.source
    stage = source.run_dir / f"{DUMP_PREFIX}{job.request.service}"
    await hands.do(close_stage, stage)  # of an earlier migration that died
    if strategy.carry is Carry.SHARED:
        stage = stage_below(job.node.shared_directory, job.request.id, node=job.node.endpoint.name)
        undo.callback(close_stage, stage)
        await hands.do(open_stage, stage, job.request.id, job.node.endpoint.name)
    undo.push_async_callback(_abort_destination, job, peer)
    here = contextlib.AsyncExitStack()
    undo.push_async_callback(_run_on_here, job, here)
    job.journal("preparing")
    files = files_of(job)  # early: what works for it starts meanwhile
    outer.callback(files.close)
    gateways = Gateways(job)
    here.push_async_callback(gateways.undo)
    dump = Dump(source, stage)
    here.callback(job.thawed)
    here.callback(dump.undo)
    here.push_async_callback(hands.settle, dump.interrupt)  # whatever fails beside it: not while it is warming up
    warm = asyncio.create_task(hands.do(dump.warm_up))  # beside the destination's own preparations
    warm.add_done_callback(lambda task: task.cancelled() or task.exception())  # who fails first gives the reason
    ready: IncomingReady = await peer.call(
        PrepareIncoming(
            id=job.request.id,
            service=source.status,
            strategy=strategy.name,
            description=source.departure.description,
        ),
        timeout_s=120,
    )
    await gateways.reach(outer)
    channel = await hands.do(PageChannel.connect, job.destination.host, ready.page_port, ready.token)
    here.callback(channel.close)
    outer.callback(channel.shutdown)  # wakes the thread that waits on it should this agent be stopped after GO
    channel.limit(job.request.bandwidth_bps)
    strategy = await hands.do(second_choice, job, strategy, channel)
    carrier = await hands.do(make_carrier, job, strategy, channel, ready, dump)
    here.callback(carrier.close)
    await hands.do(files.start, job.destination.host, ready.files_port, ready.token, job.request.bandwidth_bps)
    await warm
    job.journal("prepared")
    # Undone first: no cancel any more, wake the threads, wait for them; CRIU is not interrupted inside a step
    # unless it hangs. Then the service is let run, and only then the packets are let in.
    here.push_async_callback(hands.settle, dump.interrupt)
    here.callback(channel.shutdown)
    here.callback(carrier.interrupt)
    here.callback(files.close)
    here.callback(job.begin_undo)
    await job.pause_at("prepare.ready")

    def reconnect() -> None:
        channel.replace(PageChannel.connect(job.destination.host, ready.page_port, ready.token))

    return Parts(strategy, hands, peer, gateways, channel, dump, carrier, files, reconnect)


async def _run_on_here(job: Migration, here: contextlib.AsyncExitStack) -> None:
    """Undo what was done here. The journal forgets the migration only when all of that went well: what did not is
    done again by the agent (`Outgoing.settle`), this one or the next."""
    try:
        await here.aclose()
    except Exception as error:
        log.exception("the undo of a migration failed in part", id=job.request.id)
        job.say(f"the undo failed in part and is done again: {error}")
    else:
        job.node.journal.clear(job.request.id, "source")


async def _abort_destination(job: Migration, peer: Peer) -> None:
    with contextlib.suppress(WhimbrelError):
        await peer.call(AbortIncoming(id=job.request.id), timeout_s=5)
