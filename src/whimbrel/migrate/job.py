"""One migration as its source keeps it: what was asked, what has happened so far, and who may still stop it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from whimbrel.migrate import failpoints
from whimbrel.migrate.ask import Verdict
from whimbrel.migrate.dump import Source
from whimbrel.migrate.journal import Entry, Journal
from whimbrel.migrate.nursery import Nursery
from whimbrel.model.errors import Cancelled, WhimbrelError
from whimbrel.model.migration import MigrationRecord, MigrationRequest, Outcome, Phase, Progress, Round
from whimbrel.model.node import Capabilities, Endpoint
from whimbrel.network.port import ServicePort
from whimbrel.plan.costs import ELSEWHERE, Costs
from whimbrel.wire.rpc import Peer

T = TypeVar("T")
HANG_S = 5.0


@dataclass(frozen=True)
class Node:
    """What of the source's own node a migration needs. `costs`: learnt from the migrations that went out from it."""

    endpoint: Endpoint
    capabilities: Capabilities
    port: ServicePort
    journal: Journal
    nursery: Nursery
    shared_directory: str = ""
    costs: Costs = ELSEWHERE


@dataclass
class Migration:
    """One migration under way: what was asked, and what has happened so far. `push_guest_image`: brings the image of
    another engine's container to the engine there, told how far it is; returns the bytes that it took.
    `long_freeze_ms`: where pages may follow the resume, they do when the freeze has lasted so long (0: none may).
    `link_bytes_per_s`: as measured before the rounds, 0 when it was not. `freeze_begun`: its time cannot be moved any
    more."""

    request: MigrationRequest
    source: Source
    node: Node
    destination: Endpoint
    gateways: tuple[Endpoint, ...]
    emit: Callable[[Progress], None]
    end: Callable[[], Any]
    send_logs: Callable[[Peer], Any]
    discard: Callable[[], Any]
    push_guest_image: Callable[[Peer, Callable[[str], object]], Awaitable[int]] | None = None
    started_s: float = field(default_factory=time.monotonic)
    started_unix_s: float = field(default_factory=time.time)
    phases: list[Phase] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    bytes_sent: int = 0
    image_bytes: int = 0
    file_bytes: int = 0
    freeze_ms: float = 0.0
    reason: str = ""
    strategy: str = ""
    files_bytes: int = 0
    committed: bool = False
    heard_running: bool = False
    frozen_s: float = 0.0
    long_freeze_ms: float = 0.0
    link_bytes_per_s: float = 0.0
    faults: int = 0
    fault_ms: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)
    freeze_begun: bool = False
    _freeze_at_s: float = 0.0
    _freeze_moved: asyncio.Event = field(default_factory=asyncio.Event)
    _gate: threading.Lock = field(default_factory=threading.Lock)
    _cancelled: bool = False
    _undoing: bool = False
    _task: asyncio.Task[Any] | None = None

    def __post_init__(self) -> None:
        if self.request.freeze_in_ms > 0:
            self.freeze_in(self.request.freeze_in_ms)

    def journal(self, step: str) -> None:
        self.node.journal.write(
            Entry(
                migration=self.request.id,
                service=self.request.service,
                side="source",
                step=step,
                peer=self.destination,
                record=self.record(Outcome.RUNNING),
                gateways=self.gateways,
            )
        )

    def say(self, text: str) -> None:
        """Add to the reason, which the record tells."""
        self.reason += f"; {text}" if self.reason else text

    def now_ms(self) -> float:
        return (time.monotonic() - self.started_s) * 1e3

    async def pause_at(self, point: str) -> None:
        if failpoints.armed(point):
            await asyncio.to_thread(failpoints.wait_at, point)

    @property
    def freeze_left_ms(self) -> float | None:
        """Until the freeze is due, below 0 when it is past; None when nobody said."""
        return (self._freeze_at_s - time.monotonic()) * 1e3 if self._freeze_at_s else None

    def freeze_in(self, in_ms: float) -> bool:
        """The freeze is due in so long; False when it has begun."""
        if not self.freeze_begun:
            self._freeze_at_s = time.monotonic() + in_ms / 1e3
            self._freeze_moved.set()
        return not self.freeze_begun

    async def wait_for_freeze(self, most_ms: float) -> None:
        """For so long, or until its time is moved: it may be sooner now."""
        self._freeze_moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(most_ms / 1e3):
                await self._freeze_moved.wait()

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

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def belongs_to_this_task(self) -> None:
        """From now on a cancel ends the task that calls this."""
        self._task = asyncio.current_task()

    def commit(self) -> None:
        """No way back from here on. Raises Cancelled when somebody was faster."""
        with self._gate:
            if self._cancelled:
                raise Cancelled("cancelled on request; the service runs on where it was")
            self.committed = True

    def count_bytes(self, carrier_bytes: int, file_bytes: int) -> None:
        """What has left this node so far, by what it was for."""
        self.file_bytes = file_bytes
        self.bytes_sent = self.image_bytes + carrier_bytes + file_bytes

    def begin_undo(self) -> None:
        with self._gate:
            self._undoing = True

    def thawed(self) -> None:
        """The service runs on here, if it stood still at all."""
        if self.frozen_s:
            self.freeze_ms = (time.monotonic() - self.frozen_s) * 1e3

    def add_phase(self, name: str, start_ms: float, duration_ms: float) -> None:
        self.phases.append(Phase(name=name, start_ms=round(start_ms, 3), duration_ms=round(duration_ms, 3)))

    def record(self, outcome: Outcome, error: WhimbrelError | None = None) -> MigrationRecord:
        return MigrationRecord(
            id=self.request.id,
            service=self.request.service,
            source=self.node.endpoint.name,
            destination=self.destination.name,
            strategy=self.strategy or self.request.strategy,
            asked=self.request.strategy,
            outcome=outcome,
            workload=self.source.status.spec.workload,
            reason=self.reason,
            error=str(error) if error is not None else "",
            error_code=error.code if error is not None else "",
            started_unix_s=self.started_unix_s,
            total_ms=round(self.now_ms(), 3),
            freeze_ms=round(self.freeze_ms, 3),
            faults=self.faults,
            fault_ms=round(self.fault_ms, 3),
            rss_bytes=self.source.status.rss_bytes,
            bytes_sent=self.bytes_sent,
            raw_bytes=sum(turn.raw_bytes for turn in self.rounds),
            image_bytes=self.image_bytes,
            file_bytes=self.file_bytes,
            phases=tuple(self.phases),
            rounds=tuple(self.rounds),
        )

    @contextlib.asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        start = self.now_ms()
        self.emit(Progress(migration=self.request.id, phase=name))
        try:
            await self.pause_at(name)
            yield
        except BaseException:
            self.begin_undo()  # what follows is the undo, and no cancel may cut it short
            raise
        finally:
            self.add_phase(name, start, self.now_ms() - start)

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """A part of a phase, kept in the record but not announced: announcing costs time in the freeze."""
        start = self.now_ms()
        await self.pause_at(name)
        try:
            yield
        finally:
            self.add_phase(name, start, self.now_ms() - start)


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
