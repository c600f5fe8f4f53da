"""The freeze, told by the source: from the hold at the gateways to the moment before the first instruction there."""

from __future__ import annotations

import asyncio
import threading
import time

import msgspec

from whimbrel.memory.needed import load
from whimbrel.memory.processes import ns_pids_of
from whimbrel.migrate import failpoints
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.dump import Dump, stdio_pipes
from whimbrel.migrate.gateways import drain, left_unread
from whimbrel.migrate.job import Migration
from whimbrel.migrate.pagechannel import Kind, RestoreOrder, RestoreStart
from whimbrel.migrate.parts import Parts
from whimbrel.migrate.quiet import until_quiet
from whimbrel.migrate.rounds import round_of
from whimbrel.model.errors import StepFailed
from whimbrel.network.unread import Datagram
from whimbrel.plan.strategies import Carry

RESUME_S = 0.03
"""From GO until the source hears that the service runs, beside the way there and back: about so long."""
NOTHING_S = 0.005
"""When nothing was written, so long passes until the next look."""
FAR_S = 0.02
"""Who is so far away is waited for with something else to do."""


async def freeze_and_restore(job: Migration, parts: Parts, quiet_s: float) -> None:
    """Stop the service here and bring it to the moment before its first instruction there. `quiet_s`: so long it may
    take until nobody in it is at work."""
    hands, dump, carrier, channel = parts.hands, parts.dump, parts.carrier, parts.channel
    stdio = stdio_pipes(job.source.pid)
    needed = await hands.do(load, job.source.needed_file, ns_pids_of(job.source.pid))
    far = parts.gateways.round_trip_s >= FAR_S or failpoints.armed("freeze.holding")
    with _Meanwhile(parts, begin=far or quiet_s > 0, again=quiet_s > 0) as meanwhile:
        if quiet_s:
            async with job.step("freeze.moment"):
                await hands.do(until_quiet, job.source.cgroup.pids, quiet_s)
        await hands.do(dump.begin, ns_pids_of(job.source.pid), carrier.parent_image)
        held_s = time.monotonic()
        async with job.step("freeze.hold"):
            await job.pause_at("freeze.holding")
            await parts.gateways.hold()
            if quiet_s:  # who sends the next request at once leaves no moment until that is held
                async with job.step("freeze.quiet"):
                    await hands.do(until_quiet, job.source.cgroup.pids, quiet_s)
            meanwhile.enough.set()
            await hands.do(drain, job.node.port, job.request.service)
    job.frozen_s = time.monotonic()
    async with job.step("freeze.stop"):
        job.journal("frozen")
        datagrams = await hands.do(_stop, job, dump)
    if not job.request.bandwidth_bps:  # else pages and files together would take more than is allowed
        parts.files.begin_last()
    async with job.step("freeze.dump"):
        # The last pages cross while CRIU writes its images; what its own work touched crosses right after.
        dumped = threading.Event()
        (before, early), _ = await asyncio.gather(_early(parts, meanwhile, dumped), hands.do(_dump, dump, dumped))
        if quiet_s and before.pages:  # not of the last round, and no round that says how fast pages cross
            job.say(f"{before.pages} pages crossed while a moment without work was waited for")
            before = Carried()
    start = RestoreStart(lazy=parts.strategy.lazy, stdio=stdio, staged=parts.strategy.carry is not Carry.STREAM)
    if start.staged:  # the last pages are in the images
        late, file_bytes = await _last_pages_and_files(job, parts)
        delivered = await _deliver(job, parts, start)
    else:
        delivered = await _deliver(job, parts, start)
        late, file_bytes = await _last_pages_and_files(job, parts)
    channel.limit(0)
    async with job.step("freeze.restore"):
        order = RestoreOrder(
            behind=carrier.ranges_behind(),
            beside=carrier.ranges_beside(),
            file_passes=parts.files.passes,
            written=parts.files.written,
            needed=needed,
            datagrams=datagrams,
            held_ms=parts.gateways.held_s * 1e3,
        )
        await hands.do(channel.send, Kind.RESTORE, 0, msgspec.msgpack.encode(order))
        restored = threading.Event()
        beside, _ = await asyncio.gather(
            _beside(job, parts, held_s, restored), hands.do(_expect_ready, parts, restored)
        )
    channel.limit(0)
    took_ms = (time.monotonic() - held_s) * 1e3
    job.rounds.append(round_of(len(job.rounds) + 1, before + early + late + delivered + beside, took_ms, file_bytes))


class _Meanwhile:
    """What was written since the last round crosses while the freeze waits: for gateways that are far, or, `again` and
    again, for a moment in which nobody works. The link has nothing else to do, and less is left for later."""

    def __init__(self, parts: Parts, *, begin: bool, again: bool) -> None:
        self.enough = threading.Event()
        self._again = again
        self._parts = parts
        self._crossing = asyncio.ensure_future(parts.hands.do(self._cross)) if begin else None

    def __enter__(self) -> _Meanwhile:
        return self

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        if self._crossing is not None:
            self._crossing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def crossed(self) -> Carried:
        """Once it was `enough`, and the batch that was on its way is on the link."""
        return await self._crossing if self._crossing is not None else Carried()

    def _cross(self) -> Carried:
        carried = self._parts.carrier.while_holding(self.enough.is_set)
        while self._again and not self.enough.is_set():
            turn = self._parts.carrier.while_holding(self.enough.is_set)
            carried += turn
            if not turn.pages:
                self.enough.wait(NOTHING_S)
        return carried


async def _early(parts: Parts, meanwhile: _Meanwhile, dumped: threading.Event) -> tuple[Carried, Carried]:
    """Returns what crossed before and what did beside the dump."""
    return await meanwhile.crossed(), await parts.hands.do(parts.carrier.while_dumping, dumped.is_set)


async def _deliver(job: Migration, parts: Parts, start: RestoreStart) -> Carried:
    """CRIU's images cross, and it starts there. No limit holds them up."""
    parts.channel.limit(0)
    async with job.step("freeze.copy"):
        delivered = await parts.hands.do(parts.carrier.deliver, parts.dump.images)
        await parts.hands.do(parts.channel.send, Kind.START, 0, msgspec.msgpack.encode(start))
    parts.channel.limit(job.request.bandwidth_bps)
    return delivered


async def _last_pages_and_files(job: Migration, parts: Parts) -> tuple[Carried, int]:
    """What of the two is still to cross when the dump is written, side by side where no limit forbids it. As the time
    of the files counts what the pages did not hide of it."""
    files = None if job.request.bandwidth_bps else asyncio.ensure_future(_last_files(job, parts))
    try:
        async with job.step("freeze.pages"):
            late = await parts.hands.do(parts.carrier.last, parts.dump.images)
        start_ms = job.now_ms()
        file_bytes = await (files or _last_files(job, parts))
        job.add_phase("freeze.files", start_ms, job.now_ms() - start_ms)
        return late, file_bytes
    finally:
        if files is not None and not files.cancel() and not files.cancelled():
            files.exception()  # it was the pages that failed: this one is nobody's to raise


async def _last_files(job: Migration, parts: Parts) -> int:
    await job.pause_at("freeze.files")
    return await parts.hands.do(parts.files.last)


async def _beside(job: Migration, parts: Parts, held_s: float, restored: threading.Event) -> Carried:
    """While the destination restores, what is left of the last dirty set crosses, if that is much: all of it, or as
    much as the freeze has time for."""
    if not parts.carrier.ranges_beside() and not job.long_freeze_ms:
        return Carried()
    go_s = parts.gateways.round_trip_s + RESUME_S
    until_s = held_s + job.long_freeze_ms / 1e3 - go_s
    parts.channel.limit(job.request.bandwidth_bps)
    async with job.step("freeze.beside"):
        return await parts.hands.do(
            parts.carrier.beside_restore, lambda: restored.is_set() and time.monotonic() >= until_s
        )


def _stop(job: Migration, dump: Dump) -> list[Datagram]:
    """In one go: on a busy machine each wake-up of another thread takes up to a millisecond."""
    dump.freeze()
    job.node.port.close(job.request.service)
    return left_unread(job.node.port, job.request.service, job.source.cgroup.pids())


def _dump(dump: Dump, dumped: threading.Event) -> None:
    try:
        dump.finish()
    finally:
        dumped.set()


def _expect_ready(parts: Parts, restored: threading.Event) -> None:
    """The destination has restored; until then it may ask for pages."""
    while True:
        kind, number, _, size = parts.channel.receive_header()
        payload = parts.channel.receive_payload(size)
        if kind is Kind.READY:
            restored.set()
            return
        if kind is Kind.ABORT:
            raise StepFailed(f"the destination could not restore: {payload.decode(errors='replace')}")
        parts.carrier.answer(kind, number, payload)
