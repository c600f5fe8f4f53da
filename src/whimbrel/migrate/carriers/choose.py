"""Which carrier a strategy's way of carrying means here."""

from __future__ import annotations

from whimbrel.migrate.carriers.base import Carrier
from whimbrel.migrate.carriers.staged import LayersHere, LayersThere, StagedCarrier
from whimbrel.migrate.carriers.stream import StreamCarrier
from whimbrel.migrate.dump import Dump
from whimbrel.migrate.job import Migration
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.migrate.staging.ship import Rsync
from whimbrel.plan.strategies import Carry, Strategy
from whimbrel.wire.calls import IncomingReady


def make_carrier(job: Migration, strategy: Strategy, channel: PageChannel, ready: IncomingReady, dump: Dump) -> Carrier:
    """Blocks some ms: it attaches to the service's processes. Raises Refused where the means are lacking."""
    source, host = job.source, job.destination.host
    if strategy.carry is Carry.STREAM:
        return StreamCarrier(source.pid, channel, strategy, holes=source.holes)
    ship = Rsync(host, ready.stage_port, ready.token, job.request.bandwidth_bps)
    if strategy.carry is Carry.RSYNC:
        return StagedCarrier(source.pid, dump.stage, LayersHere(dump.stage), ship)

    def connect(layer: int) -> PageChannel:
        connection = PageChannel.connect(host, ready.stage_port, ready.token)
        connection.send(Kind.ROUND, layer)
        return connection

    return StagedCarrier(source.pid, dump.stage, LayersThere(connect), ship)
