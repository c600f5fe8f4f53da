"""The source's side of migrations: at most one per service at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import structlog

from whimbrel.agent.config import AgentConfig
from whimbrel.agent.inventory import collect_capabilities
from whimbrel.agent.services import ServiceHost
from whimbrel.checkpoint.kerndat import ensure_cache
from whimbrel.checkpoint.undumpable import mounted_from_outside, unsupported
from whimbrel.migrate.journal import Entry, Journal
from whimbrel.migrate.run import Migration, Node, migrate
from whimbrel.migrate.source import Source
from whimbrel.model.errors import BadInput, Conflict, Refused, WhimbrelError
from whimbrel.model.migration import MigrationRecord
from whimbrel.model.node import Endpoint
from whimbrel.model.service import EngineKind, ServiceState, ServiceStatus
from whimbrel.network.port import ServicePort
from whimbrel.network.tcp_repair import leave_repair_mode
from whimbrel.wire.calls import AbortIncoming, CancelMigration, FinishIncoming, Migrate, Release
from whimbrel.wire.rpc import EmitEvent, Peer

log = structlog.get_logger()


class Outgoing:
    """Answers `Migrate` and `CancelMigration`; after a restart settles what the last agent left half-done."""

    def __init__(self, config: AgentConfig, host: ServiceHost, port: ServicePort, run_dir: Path) -> None:
        self._config = config
        self._host = host
        self._port = port
        self._run_dir = run_dir
        self._journal = Journal(run_dir / "journal")
        self._running: dict[str, Migration] = {}

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
        with self._host.migrating(request.service):
            problem = await asyncio.to_thread(unsupported, status.pid)
            if status.spec.engine is EngineKind.RUNC:
                problem = problem or await asyncio.to_thread(mounted_from_outside, status.pid)
            if problem is not None:
                raise Refused(f"{request.service} cannot be migrated: {problem}")
            try:
                return await self._migrate(call, status, emit)
            finally:
                await self._host.end_departure(request.service)

    async def _migrate(self, call: Migrate, status: ServiceStatus, emit: EmitEvent) -> MigrationRecord:
        request = call.request
        try:
            departure = await self._host.departure(request.service)
        except Refused as error:
            raise Refused(f"{request.service} cannot be migrated: {error}") from error
        job = Migration(
            request=request,
            source=Source(status, departure, self._run_dir, holes=ensure_cache(self._run_dir)),
            node=Node(
                self._config.endpoint,
                await asyncio.to_thread(collect_capabilities),
                self._port,
                self._journal,
            ),
            destination=call.destination,
            gateways=call.gateways,
            emit=emit,
            end=lambda: self._host.end(request.service),
            send_logs=lambda peer: self._host.send_logs(request.service, peer),
            discard=lambda: self._host.discard(request.service),
        )
        self._running[request.id] = job
        try:
            log.info("migration starts", id=request.id, service=request.service, to=call.destination.name)
            record = await migrate(job)
        finally:
            del self._running[request.id]
        log.info("migration ended", id=request.id, outcome=record.outcome, freeze_ms=record.freeze_ms,
                 error=record.error)  # fmt: skip
        return record

    async def cancel(self, call: CancelMigration, _: EmitEvent) -> bool:
        job = self._running.get(call.id)
        return job is not None and job.cancel()

    async def settle_leftovers(self) -> None:
        """After a restart: what had not been committed runs on here, what had been is removed."""
        for entry in self._journal.entries():
            if entry.side != "source":
                continue
            try:
                with self._host.migrating(entry.service):
                    await self._settle(entry)
            except (WhimbrelError, OSError) as error:
                log.error("an interrupted migration could not be settled", id=entry.migration, error=str(error))

    async def _settle(self, entry: Entry) -> None:
        cgroup = self._host.cgroup(entry.service)
        committed = entry.step == "committed"
        if entry.step == "deciding" and entry.peer is not None:
            committed = not await _ask_until_answered(entry.peer, entry.migration)
        if committed:
            await self._host.end(entry.service)
            if entry.peer is not None:
                await self._hand_over(entry, entry.peer)
            await self._host.discard(entry.service)
        else:
            await asyncio.to_thread(leave_repair_mode, cgroup.pids())
            cgroup.thaw()
            status = await self._host.inspect(entry.service)
            await asyncio.to_thread(self._port.open, entry.service)
            await asyncio.to_thread(self._port.announce, entry.service)
            await asyncio.gather(*(_release(gateway, status) for gateway in entry.gateways))
        self._journal.clear(entry.migration, "source")
        log.warning("settled an interrupted migration", id=entry.migration, step=entry.step, committed=committed)

    async def _hand_over(self, entry: Entry, endpoint: Endpoint) -> None:
        """What the finish of an interrupted migration still owes the destination; the service runs there anyway."""
        try:
            async with Peer(endpoint.name, endpoint.host, endpoint.port) as peer:
                await self._host.send_logs(entry.service, peer)
                await peer.call(FinishIncoming(id=entry.migration))
        except WhimbrelError as error:
            log.warning("the destination did not hear the end of a migration", id=entry.migration, error=str(error))


async def _ask_until_answered(endpoint: Endpoint, migration: str) -> bool:
    """Did the destination give up? Only it knows; the service stays frozen until it says."""
    while True:
        try:
            async with Peer(endpoint.name, endpoint.host, endpoint.port) as peer:
                return bool(await peer.call(AbortIncoming(id=migration), timeout_s=5))
        except WhimbrelError as error:
            log.warning("waiting for the destination's word", id=migration, error=str(error))
            await asyncio.sleep(0.5)


async def _release(gateway: Endpoint, status: Any) -> None:
    try:
        async with Peer(gateway.name, gateway.host, gateway.port) as peer:
            await peer.call(Release(address=status.spec.address.split("/")[0], mac=status.mac), timeout_s=2)
    except WhimbrelError as error:
        log.warning("a gateway was not told to release", gateway=gateway.name, error=str(error))
