"""Which carrier a strategy's way of carrying means here."""

from __future__ import annotations

from whimbrel.memory.softdirty import has_soft_dirty
from whimbrel.migrate.carriers.base import Carrier
from whimbrel.migrate.carriers.predump import PreDumpCarrier
from whimbrel.migrate.carriers.staged import LayersHere, LayersThere, StagedCarrier
from whimbrel.migrate.carriers.stream import StreamCarrier
from whimbrel.migrate.dump import Dump
from whimbrel.migrate.job import Migration
from whimbrel.migrate.pace import Pace
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.migrate.staging.shared import Publish
from whimbrel.migrate.staging.ship import Rsync
from whimbrel.plan.strategies import Carry, Strategy
from whimbrel.wire.calls import IncomingReady


def make_carrier(job: Migration, strategy: Strategy, channel: PageChannel, ready: IncomingReady, dump: Dump) -> Carrier:
    """Blocks some ms: it attaches to the service's processes. Raises Refused where the means are lacking."""
    source, host = job.source, job.destination.host
    if strategy.carry is Carry.STREAM:
        return StreamCarrier(source.pid, channel, strategy, holes=source.holes)
    shared = strategy.carry is Carry.SHARED
    limit_bps = job.request.bandwidth_bps
    why = _why_our_tracker(strategy, limited=limit_bps > 0)
    job.say(why or "CRIU's own pre-dump finds what was written, by the kernel's soft-dirty bits")
    ship = Publish() if shared else Rsync(host, ready.stage_port, ready.token, limit_bps)
    if not why:
        return PreDumpCarrier(source.pid, dump.stage, source.run_dir, ship)
    if strategy.carry in (Carry.RSYNC, Carry.SHARED):
        pace = Pace(limit_bps if shared else 0.0)  # else the layers are written to memory here, and rsync is held back
        return StagedCarrier(source.pid, dump.stage, LayersHere(dump.stage, pace), ship)

    def connect(layer: int) -> PageChannel:
        connection = PageChannel.connect(host, ready.stage_port, ready.token)
        connection.send(Kind.ROUND, layer)
        return connection

    return StagedCarrier(source.pid, dump.stage, LayersThere(connect, Pace(limit_bps)), ship)


def _why_our_tracker(strategy: Strategy, *, limited: bool) -> str:
    """In words, why CRIU's own pre-dump is not what finds the pages; empty when it is."""
    if not has_soft_dirty():
        return "our write-protect tracker stands in for the soft-dirty bits this kernel lacks"
    if strategy.carry is Carry.PAGE_SERVER:
        return "our write-protect tracker feeds CRIU's page server"
    if strategy.carry is Carry.SHARED and limited:
        return "our write-protect tracker writes the layers, because CRIU's own pre-dump keeps to no --bandwidth"
    return ""
