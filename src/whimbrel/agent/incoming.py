"""The destination's side of migrations: offers, preparations, and what becomes of them.

The work itself is done by `whimbrel.migrate.receive`, a process of its own that survives this agent once the
migration is committed. What is decided stands in files of its work folder, the destination's word (`migrate.words`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import msgspec
import structlog

from whimbrel.agent.arrival import Arrival, Ticket, start_ticks, ticket_path
from whimbrel.agent.config import AgentConfig
from whimbrel.agent.inventory import collect_capabilities, collect_resources
from whimbrel.agent.place import needed_file_of
from whimbrel.agent.receiver import start_receiver
from whimbrel.agent.services import ServiceHost
from whimbrel.memory.keeper import Keeper
from whimbrel.migrate import failpoints
from whimbrel.migrate.nursery import Nursery
from whimbrel.migrate.pulse import BEAT_S, Listener
from whimbrel.migrate.receiveorder import ReceiveOrder
from whimbrel.migrate.staging.shared import find_stage, stage_below
from whimbrel.migrate.words import COMMITTED, LOST, WHOLE, beside_words, fate_of, said, write_word
from whimbrel.model.errors import Cancelled, Conflict, StepFailed, WhimbrelError
from whimbrel.model.service import ServiceStatus
from whimbrel.model.units import PAGE_BYTES
from whimbrel.network.names import stand_in
from whimbrel.plan.strategies import Carry, strategy_of
from whimbrel.runtime.logger import open_log
from whimbrel.runtime.moving import Landing
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, Handler

log = structlog.get_logger()
WORKER_START_S = 20.0
COMMIT_WORD_S = 3.0
LOOK_S = 0.05
Ports = tuple[int, int, int]  # of the page channel, of what is staged (0: nothing), of the files


class Incoming:
    def __init__(self, config: AgentConfig, host: ServiceHost, run_dir: Path, nursery: Nursery) -> None:
        self._config = config
        self._host = host
        self._run_dir = run_dir
        self._nursery = nursery
        self._arrivals: dict[str, Arrival] = {}
        self._preparing: dict[str, asyncio.Future[calls.IncomingReady]] = {}

    def handlers(self) -> dict[type[calls.Call], Handler]:
        return {
            calls.OfferMigration: self.offer,
            calls.TakeProbe: self.take_probe,
            calls.PrepareIncoming: self.prepare,
            calls.AbortIncoming: self.abort,
            calls.AwaitIncoming: self.wait_whole,
            calls.FinishIncoming: self.finish,
        }

    async def offer(self, call: calls.OfferMigration, _: EmitEvent) -> calls.OfferReply:
        has_image = await self._host.offer(call.spec, call.image_digest, call.description, call.shared)
        images_only = call.shared and not call.spec.shared  # then there are other ways: the source chooses one
        shared_problem = await self._host.shared.problem_with(call.shared) if images_only else ""
        capabilities, resources = await asyncio.gather(
            asyncio.to_thread(collect_capabilities),
            asyncio.to_thread(collect_resources, self._config),
        )
        return calls.OfferReply(
            capabilities=capabilities, resources=resources, has_image=has_image, shared_problem=shared_problem
        )

    async def take_probe(self, call: calls.TakeProbe, _: EmitEvent) -> int:
        return len(call.payload)

    async def prepare(self, call: calls.PrepareIncoming, _: EmitEvent) -> calls.IncomingReady:
        """Layer, network, runc's placeholder, and the worker with CRIU ready; undone whole on any failure."""
        if call.id in self._arrivals or call.id in self._preparing:
            raise Conflict(f"migration {call.id} has been prepared already")
        preparing = asyncio.ensure_future(self._prepare(call))
        self._preparing[call.id] = preparing
        try:
            return await asyncio.shield(preparing)
        except asyncio.CancelledError:
            if preparing.cancelled():
                raise Cancelled("the source gave the migration up") from None
            raise
        finally:
            self._preparing.pop(call.id, None)

    async def _prepare(self, call: calls.PrepareIncoming) -> calls.IncomingReady:
        name = call.service.spec.name
        async with contextlib.AsyncExitStack() as undo:
            landing, connection = await self._host.prepare_incoming(call.service, call.description)
            undo.push_async_callback(self._host.discard, name)
            if connection is not None:
                undo.callback(connection.close)  # then its engine's start fails, which the discard waits for
            await asyncio.to_thread(failpoints.wait_at, "incoming.prepare")
            work_dir = self._work_dir(call.id)
            work_dir.mkdir()
            undo.callback(shutil.rmtree, work_dir, ignore_errors=True)
            arrival, ports, token = await self._start_worker(call, work_dir, landing, connection)
            undo.push_async_callback(self._stop_worker, arrival)
            ticket_path(work_dir).write_bytes(msgspec.json.encode(arrival.ticket))
            self._arrivals[call.id] = arrival
            undo.pop_all()
        return calls.IncomingReady(page_port=ports[0], stage_port=ports[1], files_port=ports[2], token=token)

    def _work_dir(self, migration: str) -> Path:
        return self._run_dir / f"incoming-{migration}"

    async def _start_worker(
        self, call: calls.PrepareIncoming, work_dir: Path, landing: Landing, connection: socket.socket | None
    ) -> tuple[Arrival, Ports, str]:
        """`connection` becomes the worker's: where nobody else listens to the container, a log of ours does."""
        name = call.service.spec.name
        token = secrets.token_hex(16)
        stage = work_dir / "stage"
        if strategy_of(call.strategy).carry is Carry.SHARED:
            stage = stage_below(self._config.shared_directory, call.id, node=self._config.name)
            await asyncio.to_thread(find_stage, stage, call.id, node=self._config.name)
        if connection is None:
            logs = self._config.directory / "services" / name / "logs"
            output_fd = await asyncio.to_thread(open_log, logs, self._config.name)
        else:
            output_fd = connection.detach()
        keeper = Keeper()
        try:
            order = ReceiveOrder(
                service=name,
                stand_in=stand_in(call.id),
                token=token,
                listen_host=self._config.host,
                work_dir=str(work_dir),
                criu_run_dir=str(self._run_dir),
                netns_dir=str(self._config.directory / "netns"),
                landing=landing,
                expected_pages=call.service.rss_bytes // PAGE_BYTES,
                stage_dir=str(stage),
                needed_file=str(needed_file_of(self._config.directory, name)),
                staged=strategy_of(call.strategy).carry is not Carry.STREAM,
            )
            log_file = self._config.directory / "receive.log"
            worker = await start_receiver(self._nursery, log_file, order, [output_fd, keeper.theirs.fileno()])
        except BaseException:
            keeper.close()
            raise
        finally:
            os.close(output_fd)
            keeper.theirs.close()
        ready: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
        ticket = Ticket(
            migration=call.id,
            service=call.service,
            worker_pid=worker.pid,
            worker_start=start_ticks(worker.pid),
        )
        arrival = Arrival(ticket, work_dir, worker, keeper)
        arrival.start_keeping()
        arrival.reading = asyncio.create_task(self._read_events(arrival, ready))
        try:
            async with asyncio.timeout(WORKER_START_S):
                ports = await ready
        except BaseException as error:
            await self._stop_worker(arrival)
            await arrival.settled.wait()
            if isinstance(error, TimeoutError):
                raise StepFailed(f"the receiving process on {self._config.name} did not start") from None
            raise
        return arrival, ports, token

    async def _read_events(self, arrival: Arrival, ready: asyncio.Future[Ports]) -> None:
        watching = asyncio.create_task(self._end_if_it_hangs(arrival))
        try:
            async for line in arrival.worker.events:
                event: dict[str, Any] = msgspec.json.decode(line)
                kind = event.pop("event")
                if kind == "listening" and not ready.done():
                    ready.set_result((event["port"], event["stage_port"], event["files_port"]))
                elif kind == "running":
                    arrival.pid = event["pid"]
                elif kind == "filled":  # not before: another migration must find all pages here
                    await self._host.adopt_incoming(arrival.ticket.service, arrival.pid)
                    self._adopted(arrival)
                elif kind == "failed":
                    arrival.error = event["error"]
                log.info(f"incoming service {kind}", id=arrival.ticket.migration, **event)
        finally:
            await arrival.worker.wait()
            watching.cancel()
            arrival.worker.close()
            if not ready.done():
                ready.set_exception(StepFailed(f"the receiving process ended: {arrival.error or 'see its log'}"))
            try:
                await self._worker_ended(arrival)
            except (WhimbrelError, OSError) as error:
                log.error("an incoming migration could not be settled", id=arrival.ticket.migration, error=str(error))
            finally:
                arrival.end_keeping()  # only now: what the service still lacks would read as zeros
                arrival.settled.set()

    async def _end_if_it_hangs(self, arrival: Arrival) -> None:
        """Nobody else can: what it has committed to, the source may not undo."""
        pulse = Listener(arrival.work_dir)
        while not pulse.hangs():
            await asyncio.sleep(BEAT_S)
        log.error("the receiving process hangs: it is killed", id=arrival.ticket.migration)
        arrival.error = arrival.error or "the receiving process hung and was killed"
        arrival.worker.kill()

    async def _worker_ended(self, arrival: Arrival) -> None:
        if arrival.settled.is_set():
            return
        if not arrival.said(COMMITTED):
            await self._undo(arrival)
        elif arrival.said(WHOLE):
            await self._host.take_over(arrival.ticket.service, arrival.ticket.migration)
            self._adopted(arrival)
        else:
            await self._lose(arrival.ticket, arrival.work_dir)

    def _adopted(self, arrival: Arrival) -> None:
        ticket_path(arrival.work_dir).unlink(missing_ok=True)  # the service's own record tells from now on
        arrival.settled.set()

    async def _lose(self, ticket: Ticket, work_dir: Path) -> None:
        """The pages that the service still lacked died with the receiving process. End it before it reads zeros in
        their place; when that is certain, say so: the source still has it, as it was at the freeze."""
        await self._host.end_unheard(ticket.name)
        write_word(work_dir, LOST)
        log.error("the receiving process ended before all pages were in place: the service was ended here",
                  id=ticket.migration, service=ticket.name)  # fmt: skip
        await self._host.discard(ticket.name)
        ticket_path(work_dir).unlink(missing_ok=True)

    async def abort(self, call: calls.AbortIncoming, _: EmitEvent) -> calls.Fate:
        """The source gives up, or wants to know who runs."""
        preparing = self._preparing.get(call.id)
        if preparing is not None:
            preparing.cancel()
            await asyncio.wait([preparing])
        arrival = self._arrivals.get(call.id)
        if arrival is not None and not arrival.said(COMMITTED):
            await self._stop_worker(arrival)
        fate = fate_of(self._work_dir(call.id))
        if arrival is not None and fate is calls.Fate.NEVER_RAN:
            await arrival.settled.wait()
            await self._undo(arrival)  # again, should it have failed
        elif fate is calls.Fate.LOST:
            self._forget(call.id)
        return fate

    async def wait_whole(self, call: calls.AwaitIncoming, _: EmitEvent) -> calls.Fate:
        arrival = self._arrivals.get(call.id)
        if arrival is not None:
            await arrival.settled.wait()
        work_dir = self._work_dir(call.id)
        if fate_of(work_dir) is calls.Fate.RUNS and not said(work_dir, WHOLE):
            await self._settle(work_dir)  # it was to be ended, and could not be: again
        return fate_of(work_dir)

    async def finish(self, call: calls.FinishIncoming, _: EmitEvent) -> ServiceStatus:
        """The source knows that it has committed: this side's word is not needed any more."""
        arrival = self._arrivals.get(call.id)
        work_dir = self._work_dir(call.id)
        if arrival is not None:
            await arrival.settled.wait()
        if fate_of(work_dir) is not calls.Fate.RUNS:
            reason = arrival.error if arrival is not None else "there is no such incoming migration"
            raise StepFailed(f"the service does not run on {self._config.name}: {reason}")
        status = await self._host.inspect((work_dir / COMMITTED).read_text())
        self._forget(call.id)
        return status

    def _forget(self, migration: str) -> None:
        self._arrivals.pop(migration, None)
        shutil.rmtree(self._work_dir(migration), ignore_errors=True)

    async def _stop_worker(self, arrival: Arrival) -> None:
        """Closing its standard input makes it undo what it did and end, unless it has committed."""
        arrival.worker.close_stdin()
        try:
            async with asyncio.timeout(COMMIT_WORD_S):
                while not arrival.said(COMMITTED) and not arrival.worker.ended:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            arrival.worker.kill()
            await arrival.worker.wait()  # only now its word cannot change any more

    async def _undo(self, arrival: Arrival) -> None:
        """Remove everything; safe to repeat until it has succeeded, nothing happens after that."""
        if arrival.ticket.migration in self._arrivals:
            await self._host.discard(arrival.ticket.name)
            self._forget(arrival.ticket.migration)

    async def settle_leftovers(self) -> None:
        """After a restart: adopt what is whole, remove the rest (before its commit its worker died with the last
        agent). The words stay until the source has heard them."""
        for work_dir in sorted(self._run_dir.glob("incoming-*")):
            try:
                await self._settle(work_dir)
            except (WhimbrelError, OSError) as error:  # one service's trouble must not keep the agent down
                log.error("an incoming migration could not be settled", folder=work_dir.name, error=str(error))

    async def _until_ended(self, ticket: Ticket, work_dir: Path) -> None:
        """The last agent's receiving process fills pages still, or is just about to undo; or hangs. Then nobody but it
        holds the userfaultfds: the service stands still before it is ended, or absent pages would read as zeros."""
        pulse, cgroup = Listener(work_dir), self._host.cgroup(ticket.name)
        looks, killed = 0, False
        while start_ticks(ticket.worker_pid) == ticket.worker_start:
            if not killed and looks % round(BEAT_S / LOOK_S) == 0 and pulse.hangs():
                log.error("a receiving process of the last agent hangs: it is killed", id=ticket.migration)
                if said(work_dir, COMMITTED):
                    with contextlib.suppress(WhimbrelError):  # it has ended by itself
                        cgroup.freeze()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(ticket.worker_pid, signal.SIGKILL)
                killed = True
            looks += 1
            await asyncio.sleep(LOOK_S)
        if killed and said(work_dir, WHOLE):
            cgroup.thaw()

    async def _settle(self, work_dir: Path) -> None:
        path = ticket_path(work_dir)
        if path.exists():
            ticket = msgspec.json.decode(path.read_bytes(), type=Ticket)
            await self._until_ended(ticket, work_dir)
            if not said(work_dir, COMMITTED):
                await self._host.discard(ticket.name)
            elif said(work_dir, WHOLE):
                await self._host.take_over(ticket.service, ticket.migration)
                log.warning("adopted a service whose migration outlived the agent", service=ticket.name)
            else:
                await self._lose(ticket, work_dir)
        if not said(work_dir, COMMITTED):
            shutil.rmtree(work_dir, ignore_errors=True)
            return
        for entry in beside_words(work_dir):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
