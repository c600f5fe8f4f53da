"""The destination's side of migrations: offers, preparations, and what becomes of them.

The work itself is done by `whimbrel.migrate.receive`, a process of its own that survives this agent once the
migration is committed. Its file ``committed`` in the work folder is the destination's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from whimbrel.agent.config import AgentConfig
from whimbrel.agent.inventory import collect_capabilities, collect_resources
from whimbrel.agent.services import ServiceHost
from whimbrel.migrate.receive import ReceiveOrder
from whimbrel.model.errors import Cancelled, Conflict, StepFailed, WhimbrelError
from whimbrel.model.service import ServiceStatus
from whimbrel.model.units import PAGE_BYTES
from whimbrel.runtime.logger import open_log
from whimbrel.runtime.moving import Landing
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, Handler

log = structlog.get_logger()
WORKER_START_S = 20.0
COMMIT_WORD_S = 5.0


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What a restarted agent must know of an incoming migration."""

    migration: str
    service: ServiceStatus
    worker_pid: int
    worker_start: int


@dataclass
class Arrival:
    """One incoming migration; `events` come from the worker."""

    ticket: Ticket
    work_dir: Path
    worker: asyncio.subprocess.Process
    reading: asyncio.Task[None]
    adopted: asyncio.Event
    pid: int = 0
    error: str = ""

    @property
    def committed(self) -> bool:
        return (self.work_dir / "committed").exists()


class Incoming:
    def __init__(self, config: AgentConfig, host: ServiceHost, run_dir: Path) -> None:
        self._config = config
        self._host = host
        self._run_dir = run_dir
        self._arrivals: dict[str, Arrival] = {}
        self._preparing: dict[str, asyncio.Future[calls.IncomingReady]] = {}

    def handlers(self) -> dict[type[calls.Call], Handler]:
        return {
            calls.OfferMigration: self.offer,
            calls.PrepareIncoming: self.prepare,
            calls.AbortIncoming: self.abort,
            calls.FinishIncoming: self.finish,
        }

    async def offer(self, call: calls.OfferMigration, _: EmitEvent) -> calls.OfferReply:
        await self._host.offer(call.spec, call.image_digest, call.description)
        capabilities, resources = await asyncio.gather(
            asyncio.to_thread(collect_capabilities),
            asyncio.to_thread(collect_resources, self._config.directory),
        )
        return calls.OfferReply(
            capabilities=capabilities,
            resources=resources,
            has_image=bool(call.description) or self._host.images.has(call.image_digest),
        )

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
            landing = await self._host.prepare_incoming(call.service, call.description)
            undo.push_async_callback(self._host.discard, name)
            landing = await self._with_output(landing, name)
            try:
                work_dir = self._run_dir / f"incoming-{call.id}"
                work_dir.mkdir()
                undo.callback(shutil.rmtree, work_dir, ignore_errors=True)
                arrival, port, token = await self._start_worker(call, work_dir, landing)
            finally:
                for descriptor in landing.descriptors:
                    os.close(descriptor)  # the worker has its own: it must be alone with them
            undo.push_async_callback(self._stop_worker, arrival)
            (work_dir / "ticket.json").write_bytes(msgspec.json.encode(arrival.ticket))
            self._arrivals[call.id] = arrival
            undo.pop_all()
        return calls.IncomingReady(page_port=port, token=token)

    async def _with_output(self, landing: Landing, name: str) -> Landing:
        """A container that nobody else listens to writes to a log of ours."""
        if landing.handover_fd >= 0:
            return landing
        logs = self._config.directory / "services" / name / "logs"
        output_fd = await asyncio.to_thread(open_log, logs, self._config.name)
        return msgspec.structs.replace(landing, stdio={1: output_fd, 2: output_fd})

    async def _start_worker(
        self, call: calls.PrepareIncoming, work_dir: Path, landing: Landing
    ) -> tuple[Arrival, int, str]:
        token = secrets.token_hex(16)
        order = ReceiveOrder(
            service=call.service.spec.name,
            token=token,
            listen_host=self._config.host,
            work_dir=str(work_dir),
            criu_run_dir=str(self._run_dir),
            netns_dir=str(self._config.directory / "netns"),
            landing=landing,
            expected_pages=call.service.rss_bytes // PAGE_BYTES,
        )
        with (self._config.directory / "receive.log").open("ab") as errors:
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "whimbrel.migrate.receive",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
                pass_fds=tuple(landing.descriptors), start_new_session=True, cwd="/",
            )  # fmt: skip
        assert worker.stdin is not None
        worker.stdin.write(msgspec.json.encode(order) + b"\n")
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        ticket = Ticket(
            migration=call.id,
            service=call.service,
            worker_pid=worker.pid,
            worker_start=_start_ticks(worker.pid),
        )
        arrival = Arrival(ticket, work_dir, worker, None, asyncio.Event())  # type: ignore[arg-type]
        arrival.reading = asyncio.create_task(self._read_events(arrival, ready))
        try:
            async with asyncio.timeout(WORKER_START_S):
                port = await ready
        except TimeoutError:
            await self._stop_worker(arrival)
            raise StepFailed(f"the receiving process on {self._config.name} did not start") from None
        return arrival, port, token

    async def _read_events(self, arrival: Arrival, ready: asyncio.Future[int]) -> None:
        assert arrival.worker.stdout is not None
        try:
            async for line in arrival.worker.stdout:
                event: dict[str, Any] = msgspec.json.decode(line)
                kind = event.pop("event")
                if kind == "listening" and not ready.done():
                    ready.set_result(event["port"])
                elif kind == "running":
                    arrival.pid = event["pid"]
                elif kind == "filled":  # not before: another migration must find all pages here
                    await self._host.adopt_incoming(arrival.ticket.service, arrival.pid)
                    arrival.adopted.set()
                elif kind == "failed":
                    arrival.error = event["error"]
                log.info(f"incoming service {kind}", id=arrival.ticket.migration, **event)
        finally:
            await arrival.worker.wait()
            if not ready.done():
                ready.set_exception(StepFailed(f"the receiving process ended: {arrival.error or 'see its log'}"))
            try:
                if arrival.committed and not arrival.adopted.is_set():
                    name = arrival.ticket.service.spec.name
                    await self._host.adopt_incoming(arrival.ticket.service, self._host.restored_pid(name))
            finally:
                arrival.adopted.set()
            if not arrival.committed and arrival.ticket.migration in self._arrivals:
                await self._undo(arrival)

    async def abort(self, call: calls.AbortIncoming, _: EmitEvent) -> bool:
        """True when it is certain that the service does not and will not run here."""
        preparing = self._preparing.get(call.id)
        if preparing is not None:
            preparing.cancel()
            await asyncio.wait([preparing])
        arrival = self._arrivals.get(call.id)
        if arrival is None:
            return not (self._run_dir / f"incoming-{call.id}" / "committed").exists()
        if not arrival.committed:
            await self._stop_worker(arrival)
        if arrival.committed:
            return False
        await self._undo(arrival)
        return True

    async def finish(self, call: calls.FinishIncoming, _: EmitEvent) -> ServiceStatus:
        """The source knows that it has committed: this side's word is not needed any more."""
        arrival = self._arrivals.get(call.id)
        work_dir = self._run_dir / f"incoming-{call.id}"
        if arrival is not None:
            await arrival.adopted.wait()
        if not (work_dir / "committed").exists():
            reason = arrival.error if arrival is not None else "there is no such incoming migration"
            raise StepFailed(f"the service does not run on {self._config.name}: {reason}")
        status = await self._host.inspect((work_dir / "committed").read_text())
        self._arrivals.pop(call.id, None)
        shutil.rmtree(work_dir, ignore_errors=True)
        return status

    async def _stop_worker(self, arrival: Arrival) -> None:
        """Closing its standard input makes it undo what it did and end, unless it has committed."""
        assert arrival.worker.stdin is not None
        arrival.worker.stdin.close()
        try:
            async with asyncio.timeout(COMMIT_WORD_S):
                while not arrival.committed and arrival.worker.returncode is None:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            arrival.worker.kill()
            await arrival.worker.wait()  # only now its word cannot change any more

    async def _undo(self, arrival: Arrival) -> None:
        if self._arrivals.pop(arrival.ticket.migration, None) is not None:
            await self._host.discard(arrival.ticket.service.spec.name)
            shutil.rmtree(arrival.work_dir, ignore_errors=True)

    async def settle_leftovers(self) -> None:
        """After a restart: adopt what has committed, remove the rest (its worker died with the last agent)."""
        for work_dir in sorted(self._run_dir.glob("incoming-*")):
            try:
                await self._settle(work_dir)
            except (WhimbrelError, OSError) as error:  # one service's trouble must not keep the agent down
                log.error("an incoming migration could not be settled", folder=work_dir.name, error=str(error))

    async def _settle(self, work_dir: Path) -> None:
        path, word = work_dir / "ticket.json", work_dir / "committed"
        if path.exists():
            ticket = msgspec.json.decode(path.read_bytes(), type=Ticket)
            while _start_ticks(ticket.worker_pid) == ticket.worker_start:
                await asyncio.sleep(0.05)  # it fills pages still, or is just about to undo
            name = ticket.service.spec.name
            if word.exists():
                for entry in work_dir.iterdir():  # the word itself stays until the source has heard it
                    if entry != word:
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                await self._host.adopt_incoming(ticket.service, self._host.restored_pid(name))
                log.warning("adopted a service whose migration outlived the agent", service=name)
                return
            await self._host.discard(name)
        if not word.exists():
            shutil.rmtree(work_dir, ignore_errors=True)


def _start_ticks(pid: int) -> int:
    """When a process was started (clock ticks since boot); 0 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0
