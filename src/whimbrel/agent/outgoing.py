"""The source's side of migrations: at most one per service at a time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from whimbrel.agent.config import AgentConfig
from whimbrel.agent.inventory import collect_capabilities
from whimbrel.agent.place import needed_file_of
from whimbrel.agent.records import RecordStore
from whimbrel.agent.services import ServiceHost
from whimbrel.agent.threads import in_thread
from whimbrel.checkpoint.kerndat import ensure_cache
from whimbrel.checkpoint.undumpable import mounted_from_outside, unsupported
from whimbrel.migrate.ask import Verdict, ask_until_answered, lost_at
from whimbrel.migrate.dump import DUMP_PREFIX, Source
from whimbrel.migrate.gateways import keep_holding
from whimbrel.migrate.job import Migration, Node
from whimbrel.migrate.journal import Entry, Journal
from whimbrel.migrate.nursery import Nursery
from whimbrel.migrate.retelling import forget_all
from whimbrel.migrate.run import migrate
from whimbrel.migrate.staging.shared import close_stage, close_stages_of, stage_below
from whimbrel.model.errors import BadInput, Conflict, Refused, StepFailed, WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.model.node import Endpoint
from whimbrel.model.service import EngineKind, ServiceState, ServiceStatus
from whimbrel.network.names import stand_in
from whimbrel.network.port import ServicePort
from whimbrel.network.tcp_repair import leave_repair_mode
from whimbrel.plan.costs import learnt
from whimbrel.wire.calls import (
    AbortIncoming,
    AwaitIncoming,
    CancelMigration,
    Fate,
    FinishIncoming,
    GetMigration,
    Migrate,
    MoveFreeze,
    Release,
    ResolveMigration,
)
from whimbrel.wire.rpc import EmitEvent, Peer

log = structlog.get_logger()
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0


class Outgoing:
    """Answers `Migrate`, `CancelMigration`, `ResolveMigration` and `GetMigration`; after a restart settles what the
    last agent left half-done."""

    def __init__(
        self, config: AgentConfig, host: ServiceHost, port: ServicePort, run_dir: Path, nursery: Nursery
    ) -> None:
        self._config = config
        self._host = host
        self._port = port
        self._run_dir = run_dir
        self._nursery = nursery
        self._journal = Journal(run_dir / "journal")
        self._records = RecordStore(config.directory / "migrations.json")
        self._running: dict[str, Migration] = {}
        self._unsettled = {entry.migration: entry for entry in self._journal.entries()}
        self._verdicts: dict[str, Verdict] = {}
        self._settling: set[asyncio.Task[None]] = set()

    async def migrate(self, call: Migrate, emit: EmitEvent) -> MigrationRecord:
        request = call.request
        status = await self._host.inspect(request.service)
        if call.destination.name == self._config.name:
            raise BadInput(f"{request.service} runs on {self._config.name} already: choose another node")
        if status.state is ServiceState.MIGRATING:
            raise Conflict(
                f"{request.service} is being migrated already: wait for it (`whimbrel migration ls`) or cancel it"
            )
        if status.state is not ServiceState.RUNNING:
            raise Refused(f"{request.service} is {status.state}, not running: only a running service can migrate")
        await self._host.until_probed(request.service)
        with self._host.migrating(request.service):
            problem = await asyncio.to_thread(unsupported, status.pid)
            if status.spec.engine is EngineKind.RUNC:
                places = self._host.place(request.service).bound(status.spec)
                problem = problem or await asyncio.to_thread(mounted_from_outside, status.pid, places)
            if problem is not None:
                raise Refused(f"{request.service} cannot be migrated: {problem}")
            job = Migration(
                request=request,
                source=await self._source(status),
                node=Node(
                    self._config.endpoint,
                    await self._host.shared.with_shared(await asyncio.to_thread(collect_capabilities)),
                    self._port,
                    self._journal,
                    self._nursery,
                    self._config.shared_directory,
                    learnt(self._records.all()),
                ),
                destination=call.destination,
                gateways=call.gateways,
                emit=emit,
                end=lambda: self._host.end(request.service),
                send_logs=lambda peer: self._host.send_logs(request.service, peer),
                discard=lambda: self._host.discard(request.service, moved_to=call.destination.name),
            )
            if status.spec.engine is not EngineKind.RUNC:
                job.push_guest_image = lambda peer, tell: self._host.guest_images.push(
                    status.spec.engine, job.source.departure.description, peer, request.bandwidth_bps, tell
                )
            self._running[request.id] = job
            try:
                log.info("migration starts", id=request.id, service=request.service, to=call.destination.name)
                record = await migrate(job)
                await self._keep(record)
            except asyncio.CancelledError:  # this agent is being stopped
                if not job.committed:
                    await self._keep(job.record(Outcome.ROLLED_BACK, self._ended()))
                raise
            finally:
                del self._running[request.id]
                await self._host.end_departure(request.service)
        self._settle_what_is_left_of(request.id)
        log.info("migration ended", id=request.id, outcome=record.outcome, freeze_ms=record.freeze_ms,
                 error=record.error)  # fmt: skip
        return record

    async def _source(self, status: ServiceStatus) -> Source:
        try:
            departure = await self._host.departure(status.spec.name)
        except Refused as error:
            raise Refused(f"{status.spec.name} cannot be migrated: {error}") from error
        image = None
        if status.spec.engine is EngineKind.RUNC and not status.shared:
            image = await in_thread(self._host.images.stored, status.image_digest)
        return Source(
            status,
            departure,
            self._run_dir,
            holes=ensure_cache(self._run_dir),
            image=image,
            needed_file=needed_file_of(self._config.directory, status.spec.name),
        )

    async def cancel(self, call: CancelMigration, _: EmitEvent) -> bool:
        job = self._running.get(call.id)
        return job is not None and job.cancel()

    async def move_freeze(self, call: MoveFreeze, _: EmitEvent) -> bool:
        job = self._running.get(call.id)
        return job is not None and job.freeze_in(call.in_ms)

    async def resolve(self, call: ResolveMigration, _: EmitEvent) -> bool:
        job = self._running.get(call.id)
        verdict = job.verdict if job is not None else self._verdicts.get(call.id)
        if verdict is None or not verdict.give(runs_there=call.runs_there):
            return False
        if job is not None:
            job.say(f"an operator said that it runs {'there' if call.runs_there else 'here'}: no answer came")
        log.warning("an operator says what the destination does not", id=call.id, runs_there=call.runs_there)
        return True

    async def get(self, call: GetMigration, _: EmitEvent) -> MigrationRecord | None:
        if job := self._running.get(call.id):
            return job.record(Outcome.RUNNING)
        if entry := self._unsettled.get(call.id):
            return entry.record
        return self._records.get(call.id)

    async def _keep(self, record: MigrationRecord) -> None:
        try:
            await in_thread(self._records.put, record)
        except OSError as error:
            log.error("the record of a migration cannot be kept", id=record.id, error=str(error))

    def _ended(self) -> StepFailed:
        return StepFailed(f"the agent of {self._config.name} ended meanwhile; the service runs on there")

    async def load(self) -> None:
        """Free the memory of dumps that died with the last agent; before any other begins."""
        for left in self._run_dir.glob(f"{DUMP_PREFIX}*"):
            await in_thread(shutil.rmtree, left, ignore_errors=True)
        await in_thread(forget_all, self._run_dir)

    async def settle_leftovers(self) -> None:
        """After a restart: what had not been committed runs on here, what had been is removed."""
        sweeping = in_thread(self._sweep_stages)  # beside: storage may be slow
        await asyncio.gather(sweeping, *(self._settle_one(entry) for entry in list(self._unsettled.values())))

    def _settle_what_is_left_of(self, migration: str) -> None:
        """A migration whose undo failed is still in the journal: it is undone again, as after a restart."""
        for entry in self._journal.entries():
            if entry.migration == migration:
                self._unsettled[migration] = entry
                task = asyncio.create_task(self._settle_one(entry))
                self._settling.add(task)
                task.add_done_callback(self._settling.discard)

    async def _settle_one(self, entry: Entry) -> None:
        """Again and again until it is done: what is in the journal may stand still, and nobody else lets it run. Nobody
        else may touch it meanwhile."""
        pauses_s = _pauses_s()
        while True:
            try:
                with self._host.migrating(entry.service):
                    await self._settle_at_last(entry, pauses_s)
                return
            except Conflict:  # it is just being removed
                await asyncio.sleep(next(pauses_s))

    async def _settle_at_last(self, entry: Entry, pauses_s: Iterator[float]) -> None:
        while True:
            try:
                outcome, error = await self._settle(entry)
                break
            except Exception as failure:
                pause_s = next(pauses_s)
                log.exception("an interrupted migration could not be settled: it is tried again", id=entry.migration,
                              error=str(failure), again_in_s=pause_s)  # fmt: skip
                entry = _delayed(entry, failure)
                self._unsettled[entry.migration] = entry
                await asyncio.sleep(pause_s)
        await self._keep(_settled(entry.record, outcome, error))
        del self._unsettled[entry.migration]
        self._verdicts.pop(entry.migration, None)

    async def _settle(self, entry: Entry) -> tuple[Outcome, Exception | None]:
        if entry.service not in self._host.names():  # removed; by us, when all had arrived there
            await in_thread(self._forget, entry)
            await self._call_off(entry)
            if entry.step == "arrived":
                return Outcome.DONE, None
            return Outcome.FAILED, StepFailed(f"{entry.service} is not on {self._config.name} any more: it was removed")
        cgroup = self._host.cgroup(entry.service)
        fate = await self._fate(entry)
        if fate is Fate.RUNS:
            self._journal.write(msgspec.structs.replace(entry, step="arrived"))
            with contextlib.suppress(WhimbrelError):  # a courtesy: its announcement may not have been heard
                await _release(entry, await self._host.inspect(entry.service))
            await self._host.end(entry.service)
            await self._hand_over(entry)
            await self._host.discard(entry.service, moved_to=entry.peer.name)
        else:
            await asyncio.to_thread(leave_repair_mode, cgroup.pids())
            cgroup.thaw()
            status = await self._host.inspect(entry.service)
            await asyncio.to_thread(self._port.open, entry.service)
            held_s = math.inf  # since before the agent's restart
            await asyncio.to_thread(self._port.announce, entry.service, stand_in(entry.migration), held_s=held_s)
            await _release(entry, status)
        await in_thread(self._forget, entry)
        log.warning("settled an interrupted migration", id=entry.migration, step=entry.step, fate=fate.value)
        if fate is Fate.RUNS:
            return Outcome.DONE, None
        await self._call_off(entry)
        if fate is Fate.LOST:
            return Outcome.FAILED, StepFailed(lost_at(entry.peer.name, self._config.name))
        return Outcome.ROLLED_BACK, self._ended()

    def _forget(self, entry: Entry) -> None:
        """It is settled: what it had put aside for the destination goes, then the journal's word."""
        if self._config.shared_directory:
            close_stage(stage_below(self._config.shared_directory, entry.migration, node=self._config.name))
        self._journal.clear(entry.migration, "source")

    def _sweep_stages(self) -> None:
        """What migrations left on the shared storage that died with an agent before the journal knew of them."""
        if self._config.shared_directory:
            try:
                close_stages_of(self._config.shared_directory, self._config.name, but=self._knows)
            except OSError as error:
                log.error("what is left on the shared storage cannot be removed", error=str(error))

    def _knows(self, migration: str) -> bool:
        return migration in self._unsettled or migration in self._running

    async def _fate(self, entry: Entry) -> Fate:
        """What became of the service at the destination. Only it knows; the service stays frozen until it says."""
        if entry.step not in ("deciding", "committed"):
            return Fate.RUNS if entry.step == "arrived" else Fate.NEVER_RAN

        def waiting(why: str) -> None:
            log.warning(why, id=entry.migration)

        verdict = self._verdicts.setdefault(entry.migration, Verdict())
        fate = Fate.RUNS
        if entry.step == "deciding":
            status = await self._host.inspect(entry.service)
            async with keep_holding(entry.gateways, status.spec.address.split("/")[0]):
                fate = await ask_until_answered(entry.peer, AbortIncoming(id=entry.migration), waiting, verdict)
        if fate is Fate.RUNS:
            fate = await ask_until_answered(entry.peer, AwaitIncoming(id=entry.migration), waiting, verdict)
        return fate

    async def _call_off(self, entry: Entry) -> None:
        """The destination may forget what it kept to tell us."""
        try:
            async with Peer(entry.peer.name, entry.peer.host, entry.peer.port) as peer:
                await peer.call(AbortIncoming(id=entry.migration), timeout_s=5)
        except WhimbrelError as error:
            log.warning("the destination did not hear the end of a migration", id=entry.migration, error=str(error))

    async def _hand_over(self, entry: Entry) -> None:
        """What the finish of an interrupted migration still owes the destination; the service runs there anyway."""
        try:
            async with Peer(entry.peer.name, entry.peer.host, entry.peer.port) as peer:
                await self._host.send_logs(entry.service, peer)
                await peer.call(FinishIncoming(id=entry.migration))
        except WhimbrelError as error:
            log.warning("the destination did not hear the end of a migration", id=entry.migration, error=str(error))


def _pauses_s() -> Iterator[float]:
    pause_s = FIRST_RETRY_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_RETRY_S)


def _delayed(entry: Entry, failure: Exception) -> Entry:
    """The last failure to settle stands in the record's reason, once."""
    told = f"settling it failed and is tried again: {failure}"
    reasons = [one for one in entry.record.reason.split("; ") if not one.startswith("settling it failed")]
    record = msgspec.structs.replace(entry.record, reason="; ".join(filter(None, [*reasons, told])))
    return msgspec.structs.replace(entry, record=record)


def _settled(record: MigrationRecord, outcome: Outcome, error: Exception | None) -> MigrationRecord:
    """The record as the journal had it, closed: what the agent that ended had not written down is not known."""
    return msgspec.structs.replace(
        record,
        outcome=outcome,
        error=str(error or ""),
        error_code=getattr(error, "code", "error") if error else "",
        reason="; ".join(filter(None, [record.reason, f"the agent of {record.source} was restarted meanwhile: figures "
                                       "from then on are not known"])),
        total_ms=round((time.time() - record.started_unix_s) * 1e3, 3),
    )  # fmt: skip


async def _release(entry: Entry, status: ServiceStatus) -> None:
    order = Release(address=status.spec.address.split("/")[0], mac=status.mac, stand_in=stand_in(entry.migration))
    await asyncio.gather(*(_release_at(gateway, order) for gateway in entry.gateways))


async def _release_at(gateway: Endpoint, order: Release) -> None:
    try:
        async with Peer(gateway.name, gateway.host, gateway.port) as peer:
            await peer.call(order, timeout_s=2)
    except WhimbrelError as error:
        log.warning("a gateway was not told to release", gateway=gateway.name, error=str(error))
