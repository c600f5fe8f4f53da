"""One migration, told by its source from request to finish.

preflight   everything that can be known before anything happens; nothing is touched yet
prepare     the destination makes itself ready; the gateways make room; CRIU waits on both sides
rounds      memory and files cross while the service runs
freeze      packets are held, the service stops, the last pages and CRIU's images cross, it is restored
            ---- commit: GO; before it everything is undone on any failure, after it there is only forward
switch      the destination announces the address and the held packets go there (told by RUNNING)
finish      the rest of the pages arrive in the background, the source is removed
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from whimbrel.memory.processes import ns_pids_of
from whimbrel.migrate import failpoints
from whimbrel.migrate.journal import Entry, Journal
from whimbrel.migrate.pagechannel import FillReport, Kind, PageChannel, RestoreOrder
from whimbrel.migrate.preflight import check_offer
from whimbrel.migrate.source import (
    Dump,
    FileSync,
    PageSender,
    Source,
    StepFailed,
    TreeTracker,
    pages_in,
    stdio_pipes,
    vdso_of,
)
from whimbrel.migrate.strategies import Composition, composition_of
from whimbrel.model.errors import Cancelled, Conflict, Unreachable, WhimbrelError
from whimbrel.model.migration import MigrationRecord, MigrationRequest, Outcome, Phase, Progress, Round
from whimbrel.model.node import Capabilities, Endpoint
from whimbrel.model.units import PAGE_BYTES
from whimbrel.network.port import ServicePort
from whimbrel.network.udp_buffers import widen
from whimbrel.plan.convergence import Limits, RoundFacts, Stop, decide, predicted_freeze_ms
from whimbrel.storage.listing import snapshot
from whimbrel.wire.calls import (
    AbortIncoming,
    FinishIncoming,
    Hold,
    IncomingReady,
    OfferMigration,
    PrepareHold,
    PrepareIncoming,
    Release,
)
from whimbrel.wire.rpc import Peer

T = TypeVar("T")
DRAIN_LIMIT_S = 0.004
EAGER_HOT_PAGES = 1024
FILL_TIMEOUT_S = 120.0
AGENT_RETURN_S = 5.0
WIDE_BUFFERS_S = 2.0
HANG_S = 5.0
FREEZE_LIMIT_S = 10.0
SLOWEST_BYTES_PER_S = 1 << 20


@dataclass(frozen=True)
class Node:
    """What of the source's own node a migration needs."""

    endpoint: Endpoint
    capabilities: Capabilities
    port: ServicePort
    journal: Journal


@dataclass
class Migration:
    """One migration under way: what was asked, and what has happened so far."""

    request: MigrationRequest
    source: Source
    node: Node
    destination: Endpoint
    gateways: tuple[Endpoint, ...]
    emit: Callable[[Progress], None]
    end: Callable[[], Any]
    send_logs: Callable[[Peer], Any]
    discard: Callable[[], Any]
    started_s: float = field(default_factory=time.monotonic)
    started_unix_s: float = field(default_factory=time.time)
    phases: list[Phase] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    bytes_sent: int = 0
    freeze_ms: float = 0.0
    reason: str = ""
    committed: bool = False
    frozen_s: float = 0.0
    holding: bool = False
    _gate: threading.Lock = field(default_factory=threading.Lock)
    _cancelled: bool = False
    _undoing: bool = False
    _task: asyncio.Task[Any] | None = None

    def now_ms(self) -> float:
        return (time.monotonic() - self.started_s) * 1e3

    async def pause_at(self, point: str) -> None:
        if failpoints.armed(point):
            await asyncio.to_thread(failpoints.wait_at, point)

    def cancel(self) -> bool:
        """Ask for the end; False when it is too late. Whoever holds the gate at the commit wins."""
        with self._gate:
            if self.committed:
                return False
            if self._cancelled or self._undoing:
                return True  # it is ending already, and its undo must not be cut short
            self._cancelled = True
        if self._task is not None:
            self._task.cancel()
        return True

    def begin_undo(self) -> None:
        with self._gate:
            self._undoing = True

    def record(self, outcome: Outcome, error: WhimbrelError | None = None) -> MigrationRecord:
        return MigrationRecord(
            id=self.request.id,
            service=self.request.service,
            source=self.node.endpoint.name,
            destination=self.destination.name,
            strategy=self.request.strategy,
            outcome=outcome,
            workload=self.source.status.spec.workload,
            reason=self.reason,
            error=str(error) if error is not None else "",
            error_code=error.code if error is not None else "",
            started_unix_s=self.started_unix_s,
            total_ms=round(self.now_ms(), 3),
            freeze_ms=round(self.freeze_ms, 3),
            rss_bytes=self.source.status.rss_bytes,
            bytes_sent=self.bytes_sent,
            phases=tuple(self.phases),
            rounds=tuple(self.rounds),
        )

    @contextlib.asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        start = self.now_ms()
        self.emit(Progress(migration=self.request.id, phase=name))
        await self.pause_at(name)
        try:
            yield
        finally:
            self.phases.append(Phase(name=name, start_ms=round(start, 3), duration_ms=round(self.now_ms() - start, 3)))

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """A part of a phase, kept in the record but not announced: announcing costs time in the freeze."""
        start = self.now_ms()
        await self.pause_at(name)
        try:
            yield
        finally:
            self.phases.append(Phase(name=name, start_ms=round(start, 3), duration_ms=round(self.now_ms() - start, 3)))


class Hands:
    """Threads of one migration. After a cancel, what still runs in them is waited for before anything is closed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="migration")
        self._busy: set[Future[Any]] = set()

    async def do(self, function: Callable[..., T], *args: Any) -> T:
        future = self._pool.submit(function, *args)
        self._busy.add(future)
        future.add_done_callback(self._busy.discard)
        return await asyncio.wrap_future(future)

    async def settle(self, interrupt: Callable[[], None]) -> None:
        """Wait for what still runs; what hangs is interrupted."""
        pending = [asyncio.wrap_future(future) for future in list(self._busy)]
        if pending:
            _, hanging = await asyncio.wait(pending, timeout=HANG_S)
            if hanging:
                interrupt()
            await asyncio.gather(*pending, return_exceptions=True)
        self._pool.shutdown(wait=False)


async def migrate(job: Migration) -> MigrationRecord:
    """Carry out a migration. Never raises for a failure of the migration: the record tells."""
    job._task = asyncio.current_task()
    plan = composition_of(job.request.strategy)
    try:
        async with contextlib.AsyncExitStack() as undo:
            peer = await undo.enter_async_context(
                Peer(job.destination.name, job.destination.host, job.destination.port)
            )
            async with job.phase("preflight"):
                await _preflight(job, peer)
            if job.request.dry_run:
                job.reason = "dry run: everything that can be checked before the freeze is in order"
                return job.record(Outcome.DRY_RUN)
            with _own_cancellation(job):
                await _move(job, plan, peer, undo)
        return job.record(Outcome.DONE)
    except WhimbrelError as error:
        outcome = Outcome.CANCELLED if isinstance(error, Cancelled) else Outcome.ROLLED_BACK
        return job.record(Outcome.FAILED if job.committed else outcome, error)
    except OSError as error:
        failure = StepFailed(f"a step failed on {job.node.endpoint.name}: {error}")
        return job.record(Outcome.FAILED if job.committed else Outcome.ROLLED_BACK, failure)


@contextlib.contextmanager
def _own_cancellation(job: Migration) -> Any:
    try:
        yield
    except asyncio.CancelledError:
        if not job._cancelled:
            raise
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        raise Cancelled("cancelled on request; the service runs on where it was") from None


async def _preflight(job: Migration, peer: Peer) -> None:
    status = job.source.status
    departure = job.source.departure
    offer = await peer.call(
        OfferMigration(
            spec=status.spec,
            rss_bytes=status.rss_bytes,
            image_digest=status.image_digest,
            description=departure.description,
        )
    )
    layer = await asyncio.to_thread(snapshot, Path(departure.files[0].path))
    disk_bytes = sum(entry.size for entry in layer.values())
    check_offer(
        job.node.capabilities, offer, rss_bytes=status.rss_bytes, disk_bytes=disk_bytes, where=job.destination.name
    )


async def _move(job: Migration, plan: Composition, peer: Peer, outer: contextlib.AsyncExitStack) -> None:
    hands = Hands()
    async with contextlib.AsyncExitStack() as undo:
        async with job.phase("prepare"):
            undo.push_async_callback(_abort_destination, job, peer)
            ready: IncomingReady = await peer.call(
                PrepareIncoming(
                    id=job.request.id,
                    service=job.source.status,
                    strategy=job.request.strategy,
                    source_host=job.node.endpoint.host,
                    description=job.source.departure.description,
                ),
                timeout_s=120,
            )
            holders = await _reach_gateways(job, outer)
            undo.push_async_callback(_release_here, job, holders)
            dump = Dump(job.source, job.source.run_dir / f"dump-{job.request.service}")
            undo.callback(dump.undo)
            warm = asyncio.create_task(hands.do(dump.warm_up))
            channel = await hands.do(PageChannel.connect, job.destination.host, ready.page_port, ready.token)
            undo.callback(channel.close)
            channel.limit(job.request.bandwidth_bps)
            tracker = await hands.do(TreeTracker, job.source.pid)
            undo.callback(tracker.close)
            await warm
            undo.callback(job.node.journal.clear, job.request.id, "source")
            _journal(job, "prepared")
            # Undone first: no cancel any more, wake the threads, wait for them; CRIU is not interrupted inside a step
            # unless it hangs. Then the service is let run, and only then the packets are let in.
            undo.push_async_callback(hands.settle, dump.interrupt)
            undo.callback(channel.shutdown)
            undo.callback(job.begin_undo)
        sender, files = PageSender(channel), FileSync(job.source.departure.files)
        async with job.phase("rounds"):
            await hands.do(files.send, channel, job.source.cgroup.pids())
            if plan.rounds:
                await _rounds(job, hands, tracker, sender, channel)
        async with job.phase("freeze"):
            try:
                async with asyncio.timeout(FREEZE_LIMIT_S + job.source.status.rss_bytes / SLOWEST_BYTES_PER_S):
                    await _freeze_and_restore(job, plan, hands, tracker, sender, files, channel, dump, holders)
            except TimeoutError:
                raise StepFailed("the freeze took far too long: CRIU or the destination hangs") from None
            await _commit(job, hands, channel, peer, undo)
        job.bytes_sent = channel.sent_bytes
    await _after_commit(job, hands, peer, channel, dump, tracker, holders)


async def _rounds(job: Migration, hands: Hands, tracker: TreeTracker, sender: PageSender, channel: PageChannel) -> None:
    limits = Limits(
        max_rounds=job.request.max_rounds or Limits.max_rounds,
        max_downtime_ms=job.request.max_downtime_ms,
        deadline_ms=job.request.deadline_ms,
    )
    facts: list[RoundFacts] = []
    while True:
        number = len(facts) + 1
        before, start = channel.sent_bytes, job.now_ms()
        dirty = await hands.do(tracker.scan)
        pages = pages_in(dirty)
        await hands.do(_send_round, sender, channel, dirty, number)
        took_ms = job.now_ms() - start
        facts.append(RoundFacts(dirty_bytes=pages * PAGE_BYTES, duration_ms=took_ms))
        sent = channel.sent_bytes - before
        job.rounds.append(Round(n=number, dirty_pages=pages, bytes_sent=sent, duration_ms=round(took_ms, 3)))
        job.emit(Progress(migration=job.request.id, phase="rounds", detail=f"round {number}: {pages} pages"))
        verdict = decide(facts, limits, elapsed_ms=job.now_ms())
        if verdict is not Stop.GO_ON:
            job.reason = (
                f"{verdict} after {number} rounds; freeze predicted {predicted_freeze_ms(facts, limits):.0f} ms"
            )
            return


def _send_round(sender: PageSender, channel: PageChannel, dirty: Any, number: int) -> None:
    sender.send(dirty)
    channel.send(Kind.ROUND, number)
    channel.expect(Kind.ACK, number=number)


async def _freeze_and_restore(
    job: Migration,
    plan: Composition,
    hands: Hands,
    tracker: TreeTracker,
    sender: PageSender,
    files: FileSync,
    channel: PageChannel,
    dump: Dump,
    holders: list[Peer],
) -> None:
    """Stop the service here and bring it to the moment before its first instruction there."""
    service, address, port = job.request.service, job.source.status.spec.address.split("/")[0], job.node.port
    stdio = stdio_pipes(job.source.pid)
    await hands.do(dump.begin, ns_pids_of(job.source.pid))
    async with job.step("freeze.hold"):
        job.holding = True
        await asyncio.gather(*(holder.call(Hold(address=address), timeout_s=1) for holder in holders))
        await hands.do(_drain, port, service)
    job.frozen_s = time.monotonic()
    async with job.step("freeze.stop"):
        _journal(job, "frozen")
        await hands.do(dump.freeze)
        port.close(service)
    async with job.step("freeze.dump"):
        # The last pages cross while CRIU writes its images; what its own work touched crosses right after.
        images, early = await asyncio.gather(
            hands.do(dump.finish), hands.do(_send_final, tracker, sender, job.source.holes and plan.rounds)
        )
    async with job.step("freeze.pages"):
        late = await hands.do(_send_last, job, tracker, sender)
        await hands.do(files.send, channel, job.source.cgroup.pids())
    job.rounds.append(
        Round(
            n=len(job.rounds) + 1,
            dirty_pages=early + late,
            bytes_sent=(early + late) * PAGE_BYTES,
            duration_ms=round((time.monotonic() - job.frozen_s) * 1e3, 3),
        )
    )
    async with job.step("freeze.restore"):
        order = RestoreOrder(lazy=plan.lazy, stdio=stdio, eager_hot_pages=EAGER_HOT_PAGES)
        channel.limit(0)
        await hands.do(channel.send, Kind.IMAGES, 0, images)
        await hands.do(channel.send, Kind.RESTORE, 0, msgspec.msgpack.encode(order))
        await hands.do(_expect_ready, channel)


def _expect_ready(channel: PageChannel) -> None:
    while True:
        kind, _, _, size = channel.receive_header()
        payload = channel.receive_payload(size)
        if kind is Kind.READY:
            return
        if kind is Kind.ABORT:
            raise StepFailed(f"the destination could not restore: {payload.decode(errors='replace')}")


def _send_final(tracker: TreeTracker, sender: PageSender, wanted: bool) -> int:
    return sender.send(tracker.scan(final=True)) // PAGE_BYTES if wanted else 0


def _send_last(job: Migration, tracker: TreeTracker, sender: PageSender) -> int:
    sent = sender.send(vdso_of(job.source.pid))
    return sent // PAGE_BYTES + _send_final(tracker, sender, True)


def _drain(port: ServicePort, service: str) -> None:
    """Let the program take what had arrived: CRIU does not carry datagrams. Bounded; the hold is on already."""
    deadline = time.monotonic() + DRAIN_LIMIT_S
    while time.monotonic() < deadline:
        time.sleep(0.0005)
        if port.receive_queue_bytes(service) == 0:
            return


async def _commit(
    job: Migration, hands: Hands, channel: PageChannel, peer: Peer, undo: contextlib.AsyncExitStack
) -> None:
    """GO. From the moment it may have left, only the destination knows: the source stays frozen until told.

    So the undo is taken out of the caller's hands first: should this agent end here, the journal says "deciding", and
    the next agent asks.
    """
    _journal(job, "deciding")
    await job.pause_at("commit")
    with job._gate:
        if job._cancelled:
            raise Cancelled("cancelled on request; the service runs on where it was")
        job.committed = True
    undecided = undo.pop_all()
    told = b""
    try:
        channel.send(Kind.GO)
        await job.pause_at("after-go")
        told = await hands.do(channel.expect, Kind.RUNNING)
    except (WhimbrelError, OSError):
        if await _destination_gave_up(job, peer):
            job.committed = False
            await undecided.aclose()
            raise
    job.freeze_ms = (time.monotonic() - job.frozen_s) * 1e3
    with contextlib.suppress(msgspec.DecodeError):
        _add_restore_laps(job, msgspec.msgpack.decode(told, type=list[tuple[str, float]]))


def _add_restore_laps(job: Migration, laps: list[tuple[str, float]]) -> None:
    """The destination's clock is another one: its laps are laid end to end back from now."""
    start_ms = job.now_ms() - sum(taken_ms for _, taken_ms in laps)
    for name, taken_ms in laps:
        job.phases.append(
            Phase(name=f"freeze.restore.{name}", start_ms=round(start_ms, 3), duration_ms=round(taken_ms, 3))
        )
        start_ms += taken_ms


async def _destination_gave_up(job: Migration, peer: Peer) -> bool:
    """The channel broke between GO and RUNNING. Ask until the destination answers; both must never run."""
    while True:
        try:
            return bool(await peer.call(AbortIncoming(id=job.request.id), timeout_s=5))
        except WhimbrelError as error:  # an answer that is no answer: only yes or no will do
            detail = f"waiting for the destination's word: {error}"
            job.emit(Progress(migration=job.request.id, phase="freeze", detail=detail))
            await asyncio.sleep(0.2)


async def _after_commit(
    job: Migration,
    hands: Hands,
    peer: Peer,
    channel: PageChannel,
    dump: Dump,
    tracker: TreeTracker,
    holders: list[Peer],
) -> None:
    """Only forward. Whatever fails here is told, and the next step is taken all the same."""
    async with job.phase("switch"):
        with _forward(job):
            _journal(job, "committed")
        address = job.source.status.spec.address.split("/")[0]
        mac = job.source.status.mac
        await asyncio.gather(
            *(holder.call(Release(address=address, mac=mac), timeout_s=2) for holder in holders),
            return_exceptions=True,
        )
    async with job.phase("finish"):
        with _forward(job):
            channel.sock.settimeout(FILL_TIMEOUT_S)
            report = msgspec.msgpack.decode(await hands.do(channel.expect, Kind.FILLED), type=FillReport)
            job.reason += (
                f"; {report.eager_pages} pages in place before the resume, {report.faults} faults, "
                f"fill {report.fill_ms:.0f} ms"
            )
        # Only now: freeing a gigabyte would take the processor from those who need it to answer.
        with _forward(job):
            await job.end()
        for close in (dump.close, tracker.close, channel.close):
            with _forward(job):
                close()
        job.bytes_sent = channel.sent_bytes
        await _tell_the_end(job, peer)
        with _forward(job):
            await job.discard()
            job.node.journal.clear(job.request.id, "source")
        await hands.settle(dump.interrupt)


@contextlib.contextmanager
def _forward(job: Migration) -> Any:
    try:
        yield
    except (WhimbrelError, OSError, msgspec.DecodeError) as error:
        job.reason += f"; after the commit: {error}"


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
                job.reason += f"; the destination's agent did not hear the end, its log begins anew: {error}"
                return
        await asyncio.sleep(0.2)


async def _reach_gateways(job: Migration, stack: contextlib.AsyncExitStack) -> list[Peer]:
    """Connect to every gateway before the freeze: a hold must cost one message."""
    address = job.source.status.spec.address.split("/")[0]
    holders: list[Peer] = []
    for gateway in job.gateways:
        holder = await stack.enter_async_context(Peer(gateway.name, gateway.host, gateway.port))
        await holder.call(PrepareHold(address=address), timeout_s=5)
        holders.append(holder)
    return holders


async def _release_here(job: Migration, holders: list[Peer]) -> None:
    """Undo of the hold: the service runs here again, so make room for the burst, open its port, let the packets in."""
    if not job.holding:
        return
    service, port = job.request.service, job.node.port
    address, mac = job.source.status.spec.address.split("/")[0], job.source.status.mac
    try:
        with contextlib.suppress(OSError):
            asyncio.get_running_loop().call_later(WIDE_BUFFERS_S, widen(job.source.cgroup.pids()))
        port.open(service)
        port.announce(service)
    finally:
        releases = (holder.call(Release(address=address, mac=mac), timeout_s=2) for holder in holders)
        await asyncio.gather(*releases, return_exceptions=True)


async def _abort_destination(job: Migration, peer: Peer) -> None:
    with contextlib.suppress(WhimbrelError):
        await peer.call(AbortIncoming(id=job.request.id), timeout_s=5)


def _journal(job: Migration, step: str) -> None:
    job.node.journal.write(
        Entry(
            migration=job.request.id,
            service=job.request.service,
            side="source",
            step=step,
            peer=job.destination,
            gateways=job.gateways,
        )
    )


__all__ = ["Conflict", "Migration", "Node", "Path", "migrate"]
