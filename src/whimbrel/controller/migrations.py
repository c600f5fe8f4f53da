"""Migrations of the region: checked, handed to the source's agent, watched, and kept on disk.

The source's agent carries a migration out. The controller may be restarted or lose sight of it meanwhile; it
then asks that agent for the record. Should the agent know nothing of it, the outcome is found by looking at where the
service runs, and never guessed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from datetime import UTC, datetime
from typing import Any

import structlog
from msgspec.structs import replace

from whimbrel.controller.feed import Feed
from whimbrel.controller.problems import Unknown
from whimbrel.controller.region import Region
from whimbrel.controller.services import Services
from whimbrel.controller.store import MigrationStore
from whimbrel.controller.views import MigrationEvent
from whimbrel.model.errors import BadInput, Cancelled, Conflict, Refused, Unreachable, WhimbrelError
from whimbrel.model.migration import MigrationRecord, MigrationRequest, Outcome, Progress
from whimbrel.model.service import ServiceState
from whimbrel.plan.convergence import Limits
from whimbrel.wire.calls import CancelMigration, GetMigration, ListServices, Migrate, MoveFreeze, ResolveMigration

SETTLE_S = 60.0
LOOK_EVERY_S = 0.5

log = structlog.get_logger()
Heard = Callable[[MigrationRecord, Progress | None], None]
"""A migration begins or ends (no progress), or comes on. Called in the event loop; it may not block."""


def new_id(now_unix_s: float) -> str:
    """A name that sorts by time and is safe in a file name: ``20260102-030405-1f2e3d``."""
    return f"{datetime.fromtimestamp(now_unix_s, UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class Migrations:
    """What `whimbrel migrate` and `whimbrel migration …` ask for."""

    def __init__(
        self, region: Region, services: Services, store: MigrationStore, *, settle_s: float = SETTLE_S
    ) -> None:
        self._region = region
        self._services = services
        self._store = store
        self._settle_s = settle_s
        self._live: dict[str, Feed] = {}  # by service: at most one runs
        self._starting: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.listeners: list[Heard] = []
        self.checks: list[Callable[[str], None]] = []
        """Asked before a service moves; who objects raises Refused."""

    async def resume(self) -> None:
        """Take up the migrations that ran when the controller last stopped."""
        for record in await asyncio.to_thread(self._store.unfinished):
            feed = Feed(record)
            self._live[record.service] = feed
            self._spawn(self._settle(feed, "the controller was restarted meanwhile"), f"settle {record.id}")

    async def close(self) -> None:
        """Stop watching. What runs goes on at the agents; `resume` finds its outcome later."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.end_streams()

    def end_streams(self) -> None:
        for feed in self._live.values():
            feed.hang_up()

    def running(self, service: str) -> MigrationRecord | None:
        feed = self._live.get(service)
        return feed.record if feed else None

    def live(self) -> list[MigrationRecord]:
        """Those that run now."""
        return [feed.record for feed in self._live.values()]

    def refuse_if_moving(self, service: str) -> None:
        """Raises Conflict while the service moves."""
        if service in self._starting:
            raise Conflict(f"a migration of service {service} is just starting: wait for its end")
        if record := self.running(service):
            raise Conflict(
                f"service {service} already moves to {record.destination} (migration {record.id}): "
                f"wait for its end, or `whimbrel migration cancel {record.id}`"
            )

    async def start(
        self,
        request: MigrationRequest,
        reason: str = "",
        *,
        freeze_at_unix_s: float = 0.0,
        by: Collection[str] = (),
    ) -> MigrationRecord:
        """Check and start. `request.id` is ignored. Returns the record as it stands, outcome `running`.
        `freeze_at_unix_s`: when the freeze should begin, once the memory is across (0: as soon as it is). `by`: the
        gateways that users of the service come by, if that is known: only they hold, and a hold takes as long as the
        way to the furthest.

        Raises Unknown (service, node), BadInput (destination is the source or no edge), Conflict (it moves
        already), Unreachable (an agent that is needed is down). Nothing was touched in any of these cases.
        """
        self.refuse_if_moving(request.service)
        self._starting.add(request.service)
        try:
            home = await self._services.find(request.service)
            destination = self._region.edge(request.destination)
            if destination.name == home.node:
                raise BadInput(f"service {request.service} already runs on {home.node}: choose another node with --to")
            if home.state is not ServiceState.RUNNING:
                raise Refused(
                    f"service {request.service} on {home.node} is {home.state}, not running: only a running "
                    "service moves"
                )
            for check in self.checks:
                check(request.service)
            gateways = tuple(node for node in self._region.gateways() if not by or node.name in by)
            await self._region.require_up([home.node, destination.name, *(gateway.name for gateway in gateways)])
            now_unix_s = time.time()
            request = replace(request, id=new_id(now_unix_s))
            record = MigrationRecord(
                id=request.id,
                service=request.service,
                source=home.node,
                destination=destination.name,
                strategy=request.strategy,
                outcome=Outcome.RUNNING,
                workload=home.spec.workload,
                reason=reason,
                started_unix_s=now_unix_s,
            )
            await asyncio.to_thread(self._store.put, record)  # before the agent hears of it: a restart must find it
            feed = self._live[request.service] = Feed(record)
            if freeze_at_unix_s:
                freeze_in_ms = max(1.0, (freeze_at_unix_s - time.time()) * 1e3)
                handover_in_ms = freeze_in_ms + Limits().fixed_freeze_ms
                request = replace(request, freeze_in_ms=freeze_in_ms, handover_in_ms=handover_in_ms)
            call = Migrate(request=request, destination=destination, gateways=gateways)
            if not request.dry_run:
                self._tell(record)
            self._spawn(self._watch(feed, call), f"watch {record.id}")
            return record
        finally:
            self._starting.discard(request.service)

    async def cancel(self, migration_id: str) -> None:
        """Ask the source to undo. Raises Unknown, Conflict (over, or past its commit), Unreachable."""
        record = await self.get(migration_id)
        if record.outcome is not Outcome.RUNNING:
            raise Conflict(f"migration {migration_id} is over ({record.outcome}): there is nothing to cancel")
        if not await self._region.peer(record.source).call(CancelMigration(id=migration_id)):
            raise Conflict(
                f"migration {migration_id} is past its commit or just over: it can only finish now, "
                f"see `whimbrel migration show {migration_id}`"
            )

    async def freeze_in(self, migration_id: str, in_ms: float) -> bool:
        """Tell the source that the freeze is due in so long; False when it has begun, or the migration is over. Raises
        Unknown, Unreachable."""
        record = await self.get(migration_id)
        if record.outcome is not Outcome.RUNNING:
            return False
        return bool(await self._region.peer(record.source).call(MoveFreeze(id=migration_id, in_ms=max(1.0, in_ms))))

    async def resolve(self, migration_id: str, *, runs_there: bool) -> None:
        """Say whether the service runs at a destination that is gone. Raises Unknown, Conflict (over, or nobody waits
        for the destination's word), Unreachable."""
        record = await self.get(migration_id)
        if record.outcome is not Outcome.RUNNING:
            raise Conflict(f"migration {migration_id} is over ({record.outcome}): there is nothing to resolve")
        call = ResolveMigration(id=migration_id, runs_there=runs_there)
        if not await self._region.peer(record.source).call(call):
            raise Conflict(
                f"migration {migration_id} does not wait for an answer from {record.destination}: wait for its end, or "
                f"`whimbrel migration cancel {migration_id}`"
            )

    async def get(self, migration_id: str) -> MigrationRecord:
        """Raises Unknown."""
        for feed in self._live.values():
            if feed.record.id == migration_id:
                return feed.record
        record = await asyncio.to_thread(self._store.get, migration_id)
        if record is None:
            raise Unknown(f"there is no migration {migration_id!r}: `whimbrel migration ls` lists them")
        return record

    async def newest(self, limit: int, service: str = "", before: str = "") -> list[MigrationRecord]:
        """The newest first; `before`: those that come after this one. Raises Unknown when there is none of that id."""
        if before:
            await self.get(before)
        return await asyncio.to_thread(self._store.newest, limit, service, before)

    async def events(self, migration_id: str) -> AsyncIterator[MigrationEvent]:
        """News of a migration until its record; at once the record when it is over. Raises Unknown."""
        for feed in self._live.values():
            if feed.record.id == migration_id:
                return feed.follow()
        return Feed(await self.get(migration_id), over=True).follow()

    def _tell(self, record: MigrationRecord, progress: Progress | None = None) -> None:
        for listener in self.listeners:
            listener(record, progress)

    def _publish(self, feed: Feed, progress: Progress) -> None:
        feed.publish(progress)
        self._tell(feed.record, progress)

    # --- watching -----------------------------------------------------------------------------------------
    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, feed: Feed, call: Migrate) -> None:
        """Carry the call through to its record, whatever happens to the call."""
        record = feed.record
        sent_unix_s, sent_s = time.time(), time.monotonic()
        log.info("migration starts", id=record.id, service=record.service, to=record.destination)
        try:
            answer: MigrationRecord = await self._region.peer(record.source).call(
                call, timeout_s=None, on_event=lambda progress: self._publish(feed, progress)
            )
            final = _joined(answer, record)
            back_unix_s = sent_unix_s + time.monotonic() - sent_s
            final = replace(final, started_unix_s=on_our_clock(final, sent_unix_s, back_unix_s))
        except Unreachable as error:
            await self._settle(feed, str(error))
            return
        except WhimbrelError as error:
            final = _closed(record, _outcome_of(error), str(error), error.code)
        await self._finish(feed, final)

    async def _settle(self, feed: Feed, cause: str) -> None:
        """The call is lost, the migration perhaps not: ask the source's agent until it is over. If that agent knows
        nothing of it, look until the service runs in one place only."""
        record = feed.record
        self._publish(feed, Progress(migration=record.id, phase="looking", detail=cause))
        unseen_since = time.monotonic()
        while True:
            answer = await self._ask(record)
            if answer is not None and answer.outcome is not Outcome.RUNNING:
                final = _joined(answer, record)
                break
            if answer is not None:
                unseen_since = time.monotonic()  # it is on its way, however long it takes
            else:
                source, destination = await asyncio.gather(
                    self._look(record.source, record.service), self._look(record.destination, record.service)
                )
                if found := _seen(record, source, destination, cause):
                    final = found
                    break
                if None not in (source, destination) and (source or destination):
                    unseen_since = time.monotonic()
            if time.monotonic() - unseen_since > self._settle_s:
                final = _closed(
                    record,
                    Outcome.FAILED,
                    f"{cause}; the outcome is unknown after {self._settle_s:.0f} s: "
                    f"look at {record.source} and {record.destination} with `whimbrel service ls`",
                    "unreachable",
                )
                break
            await asyncio.sleep(LOOK_EVERY_S)
        await self._finish(feed, final)

    async def _ask(self, record: MigrationRecord) -> MigrationRecord | None:
        """What the source's agent has of it; None when it has nothing, or does not answer."""
        try:
            answer: MigrationRecord | None = await self._region.peer(record.source).call(
                GetMigration(id=record.id), timeout_s=5.0
            )
        except WhimbrelError:
            return None
        return answer

    async def _look(self, node: str, service: str) -> str | None:
        """State of the service there; "" = it is not there; None = the agent does not answer."""
        try:
            for status in await self._region.peer(node).call(ListServices(), timeout_s=5.0):
                if status.spec.name == service:
                    return str(status.state.value)
        except WhimbrelError:
            return None
        return ""

    async def _finish(self, feed: Feed, final: MigrationRecord) -> None:
        try:
            await asyncio.to_thread(self._store.put, final)
        except WhimbrelError as error:  # a database that is away must not lock the service, and keep listeners waiting
            log.error("cannot keep the record of a migration", id=final.id, error=str(error))
        self._live.pop(final.service, None)
        feed.finish(final)
        self._tell(final)
        log.info("migration over", id=final.id, outcome=final.outcome.value, error=final.error)


def _outcome_of(error: WhimbrelError) -> Outcome:
    """Of a call that the source's agent answered by an error. It refuses before it begins: then the service is as it
    was, as after a migration that was undone."""
    if isinstance(error, Cancelled):
        return Outcome.CANCELLED
    return Outcome.ROLLED_BACK if isinstance(error, Refused | BadInput | Conflict) else Outcome.FAILED


_SETTLED = {ServiceState.RUNNING.value, ServiceState.STOPPED.value}


def _seen(record: MigrationRecord, source: str | None, destination: str | None, cause: str) -> MigrationRecord | None:
    """The end of a migration by the state of the service on both sides ("" = not there, None = no answer), if they
    tell it: it is on one side only, and does not move."""
    if "" not in (source, destination) or not _SETTLED & {source, destination}:
        return None
    if destination:
        final = _closed(record, Outcome.DONE, "", "")
        return replace(final, reason="; ".join(filter(None, [record.reason, f"figures lost: {cause}"])))
    return _closed(record, Outcome.ROLLED_BACK, f"{cause}; the service runs on at {record.source}", "unreachable")


def _joined(answer: MigrationRecord, record: MigrationRecord) -> MigrationRecord:
    """The agent's record; the id and what only the controller knows stay ours, whatever the agent says."""
    return replace(
        answer,
        id=record.id,
        reason=answer.reason or record.reason,
        workload=answer.workload or record.workload,
        started_unix_s=answer.started_unix_s or record.started_unix_s,
    )


def on_our_clock(record: MigrationRecord, sent_unix_s: float, back_unix_s: float) -> float:
    """When the agent began, by the clock on which its call was sent and its answer came back. It cannot have begun
    before the call, nor ended after the answer: if its own clock says so, that clock is another one, and the call was
    in the middle between the two. Else the agent's word is nearer to the truth than any guess."""
    begun_s, took_s = record.started_unix_s, record.total_ms / 1e3
    if begun_s >= sent_unix_s and begun_s + took_s <= back_unix_s:
        return begun_s
    return sent_unix_s + max(0.0, back_unix_s - sent_unix_s - took_s) / 2


def _closed(record: MigrationRecord, outcome: Outcome, error: str, code: str) -> MigrationRecord:
    total_ms = (time.time() - record.started_unix_s) * 1e3
    return replace(record, outcome=outcome, error=error, error_code=code, total_ms=total_ms)
