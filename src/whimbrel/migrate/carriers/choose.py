"""Which carrier a strategy's way of carrying means here."""

from __future__ import annotations

from whimbrel.memory.softdirty import has_soft_dirty
from whimbrel.migrate.carriers.base import Carrier
from whimbrel.migrate.carriers.predump import PreDumpCarrier
from whimbrel.migrate.carriers.staged import LayersHere, LayersThere, StagedCarrier
from whimbrel.migrate.carriers.stream import StreamCarrier
from whimbrel.migrate.dump import Dump
from whimbrel.migrate.job import Migration
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
    own_way = has_soft_dirty() and strategy.carry is not Carry.PAGE_SERVER
    if not own_way:
        why = "feeds CRIU's page server" if has_soft_dirty() else "stands in for the soft-dirty bits this kernel lacks"
        job.say(f"our write-protect tracker {why}")
    else:
        job.say("CRIU's own pre-dump finds what was written, by the kernel's soft-dirty bits")
    shared = strategy.carry is Carry.SHARED
    ship = Publish() if shared else Rsync(host, ready.stage_port, ready.token, job.request.bandwidth_bps)
    if own_way:
        return PreDumpCarrier(source.pid, dump.stage, source.run_dir, ship)
    if strategy.carry in (Carry.RSYNC, Carry.SHARED):
        return StagedCarrier(source.pid, dump.stage, LayersHere(dump.stage), ship)

    def connect(layer: int) -> PageChannel:
        connection = PageChannel.connect(host, ready.stage_port, ready.token)
        connection.send(Kind.ROUND, layer)
        return connection

    return StagedCarrier(source.pid, dump.stage, LayersThere(connect), ship)
