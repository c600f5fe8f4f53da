"""What `prepare` puts together at the source, and every later phase uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whimbrel.migrate.carriers.base import Carrier
from whimbrel.migrate.dump import Dump
from whimbrel.migrate.files import FileSync
from whimbrel.migrate.gateways import Gateways
from whimbrel.migrate.job import Hands
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.plan.strategies import Strategy
from whimbrel.wire.rpc import Peer


@dataclass(frozen=True)
class Parts:
    strategy: Strategy
    hands: Hands
    peer: Peer
    gateways: Gateways
    channel: PageChannel
    dump: Dump
    carrier: Carrier
    files: FileSync
    reconnect: Callable[[], None]

    @property
    def behind(self) -> bool:
        """Whether pages are left for after the commit."""
        return bool(self.carrier.ranges_behind())
