"""The commit and what follows it: from here on there is only forward."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import msgspec
import structlog

from whimbrel.memory.ranges import total_bytes
from whimbrel.migrate.ask import ask_until_answered, lost_at
from whimbrel.migrate.backlog import unpack
from whimbrel.migrate.job import Migration
from whimbrel.migrate.pagechannel import FillReport, GivenUp, Kind
from whimbrel.migrate.parts import Parts
from whimbrel.model.errors import StepFailed, Unreachable, WhimbrelError
from whimbrel.model.migration import Progress
from whimbrel.wire.calls import AbortIncoming, AwaitIncoming, Fate, FinishIncoming
from whimbrel.wire.rpc import Peer

log = structlog.get_logger()
RUNNING_S = 5.0  # 2 ms are usual; who takes longer may hang
FILL_TIMEOUT_S = 120.0
SLOWEST_BYTES_PER_S = 1 << 17
AGENT_RETURN_S = 5.0
RECONNECT_S = 0.2

Following = tuple["asyncio.Future[None]", "asyncio.Future[bytes]"]
"""What was left behind is sent, and until FILLED comes the destination may ask for pages."""


async def commit(job: Migration, parts: Parts, undo: contextlib.AsyncExitStack) -> contextlib.AsyncExitStack:
    """GO. From the moment it may have left, only the destination knows: the source stays frozen until told.

    So the undo is taken out of the caller's hands first: should this agent end here, the journal says "deciding", and
    the next agent asks. Returns it: until all pages are in place there, the frozen source is still needed.
    """
    job.journal("deciding")
    await job.pause_at("commit")
    job.commit()
    undecided = undo.pop_all()
    told = b""
    try:
        parts.channel.send(Kind.GO)
        await job.pause_at("after-go")
        parts.channel.sock.settimeout(RUNNING_S)
        told = await parts.hands.do(_expect, parts, Kind.RUNNING)
    except GivenUp:  # said on this connection, before our GO was read: its agent, who may be dead, need not be asked
        job.committed = False
        await undecided.aclose()
        raise
    except Exception:  # whatever it is: only an answer decides
        fate = await ask_until_answered(
            job.destination, AbortIncoming(id=job.request.id), _waiting(job, "freeze"), job.verdict
        )
        if fate is not Fate.RUNS:
            job.committed = fate is Fate.LOST
            await undecided.aclose()
            if fate is Fate.LOST:
                raise StepFailed(lost_at(job.destination.name, job.node.endpoint.name)) from None
            raise
        parts.channel.shutdown()  # nobody knows how much of a frame was read
    job.heard_running = bool(told)
    job.freeze_ms = (time.monotonic() - job.frozen_s) * 1e3
    with contextlib.suppress(msgspec.DecodeError):
        _add_restore_laps(job, msgspec.msgpack.decode(told, type=list[tuple[str, float]]))
    return undecided


def _expect(parts: Parts, wanted: Kind) -> bytes:
    """Wait for one kind of frame; meanwhile the destination may ask for pages."""
    while True:
        kind, number, _, size = parts.channel.receive_header()
        payload = parts.channel.receive_payload(size)
        if kind is wanted or not parts.carrier.answer(kind, number, payload):
            parts.channel.check(kind, number, payload, wanted)
            return payload


def _add_restore_laps(job: Migration, laps: list[tuple[str, float]]) -> None:
    """The destination's clock is another one: its laps are laid end to end back from now."""
    start_ms = job.now_ms() - sum(taken_ms for _, taken_ms in laps)
    for name, taken_ms in laps:
        job.add_phase(f"freeze.restore.{name}", start_ms, taken_ms)
        start_ms += taken_ms


def _waiting(job: Migration, phase: str) -> Callable[[str], None]:
    return lambda detail: job.emit(Progress(migration=job.request.id, phase=phase, detail=detail))


async def follow_through(job: Migration, parts: Parts, resume_here: contextlib.AsyncExitStack) -> None:
    """Only forward. Whatever fails here is told, and the next step is taken all the same. There is one way back: when
    the destination says that the service is dead there for want of pages, the frozen source is all that is left."""
    async with job.phase("switch"):
        with _forward(job):
            job.journal("committed")
        # at once: a far gateway takes as long to hear of it as some hundred pages take to cross
        following = _follow(job, parts) if job.heard_running else None
        if job.heard_running:  # else its own announcement, when it runs
            await parts.gateways.release()
    async with job.phase("finish"):
        if not await _arrived_whole(job, parts, following):
            await resume_here.aclose()
            raise StepFailed(lost_at(job.destination.name, job.node.endpoint.name))
        if not job.heard_running:
            await parts.gateways.release()
        with _forward(job):
            job.journal("arrived")
        # Only now: freeing a gigabyte would take the processor from those who need it to answer.
        with _forward(job):
            await job.end()
        for close in (parts.dump.close, parts.carrier.close, parts.files.close, parts.channel.close):
            with _forward(job):
                close()
        job.count_bytes(parts.carrier.sent_bytes, parts.files.sent_bytes)
        await _tell_the_end(job, parts.peer)
        with _forward(job):
            await job.discard()
            job.node.journal.clear(job.request.id, "source")
        await parts.hands.settle(parts.dump.interrupt)


async def _arrived_whole(job: Migration, parts: Parts, following: Following | None) -> bool:
    """Whether all pages are in place there. What the channel does not tell, the destination's agent must."""
    try:
        report = msgspec.msgpack.decode(await _filled(job, parts, following), type=FillReport)
    except Exception as error:  # whatever it is: only an answer decides
        job.say(f"after the commit: {error}")
        question = AwaitIncoming(id=job.request.id)
        return await ask_until_answered(job.destination, question, _waiting(job, "finish"), job.verdict) is Fate.RUNS
    job.faults, job.fault_ms = report.faults, report.fault_ms
    job.say(
        f"{report.eager_pages} + {report.early_pages} pages in place before the resume, "
        f"{report.faults} faults answered in {report.fault_ms:.1f} ms, fill {report.fill_ms:.0f} ms"
    )
    return True


def _follow(job: Migration, parts: Parts) -> Following:
    parts.channel.limit(job.request.bandwidth_bps)
    parts.channel.sock.settimeout(_longest_fill_s(job, parts))
    sending = asyncio.ensure_future(parts.hands.do(parts.carrier.send_behind))
    hearing = asyncio.ensure_future(parts.hands.do(_expect, parts, Kind.FILLED))
    for task in (sending, hearing):
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # whoever waits for it is told
    return sending, hearing


async def _filled(job: Migration, parts: Parts, following: Following | None) -> bytes:
    """The destination's word that it has every page. What was left behind survives a cut of the link: it goes again
    over a new one. `following`: has begun already."""
    deadline = time.monotonic() + _longest_fill_s(job, parts)
    while True:
        sending, hearing = following or _follow(job, parts)
        following = None
        try:
            _, filled = await asyncio.gather(sending, hearing)
            return filled
        except (WhimbrelError, OSError):
            if not parts.behind or time.monotonic() > deadline:
                raise
            parts.channel.shutdown()
            # Both must have let go of the old connection: two that push would leave pages out.
            await asyncio.gather(sending, hearing, return_exceptions=True)
            await asyncio.sleep(RECONNECT_S)
            try:
                await parts.hands.do(parts.reconnect)
                parts.carrier.link_was_cut()
            except Unreachable as error:
                if isinstance(error.__cause__, ConnectionRefusedError):
                    raise  # the link is there, but nobody is any more who could take the pages


def _longest_fill_s(job: Migration, parts: Parts) -> float:
    """A link that is dead shows by itself, and long before; this is for who hangs."""
    rate = job.request.bandwidth_bps / 8 or SLOWEST_BYTES_PER_S
    left_bytes = sum(total_bytes(ranges) for ranges in unpack(parts.carrier.ranges_behind()).values())
    return FILL_TIMEOUT_S + 2 * left_bytes / rate


@contextlib.contextmanager
def _forward(job: Migration) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not isinstance(error, WhimbrelError | OSError | msgspec.DecodeError):
            log.exception("the end of a migration met an error that nobody expected", id=job.request.id)
        job.say(f"after the commit: {error}")


async def _tell_the_end(job: Migration, peer: Peer) -> None:
    """The output so far follows the service, and the destination's agent may forget the migration. That agent may
    have died meanwhile: it gets some seconds to come back; without it the service runs there all the same."""
    deadline = time.monotonic() + AGENT_RETURN_S
    while True:
        try:
            await job.send_logs(peer)
            await peer.call(FinishIncoming(id=job.request.id), timeout_s=FILL_TIMEOUT_S)
            return
        except (WhimbrelError, OSError) as error:
            if time.monotonic() > deadline or not isinstance(error, Unreachable):
                job.say(f"the destination's agent did not hear the end, its log begins anew: {error}")
                return
        await asyncio.sleep(0.2)
