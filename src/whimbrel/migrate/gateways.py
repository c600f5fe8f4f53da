"""The gateways of one migration: packets for the service are held there while it is frozen."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from whimbrel.migrate.job import Migration
from whimbrel.model.node import Endpoint
from whimbrel.network.names import stand_in
from whimbrel.network.port import ServicePort
from whimbrel.network.softnet import frames_waiting
from whimbrel.network.udp_buffers import widen
from whimbrel.network.unread import Datagram, let_the_kernel_catch_up, unread
from whimbrel.wire.calls import Hold, PrepareHold, Release, RenewHold
from whimbrel.wire.rpc import Peer

UNREAD_LIMIT_S = 0.004
DRAIN_LIMIT_S = 0.05
WIDE_BUFFERS_S = 2.0
RENEW_EVERY_S = 15.0  # a gateway lets go by itself after four times that


@contextlib.asynccontextmanager
async def keep_holding(gateways: Sequence[Endpoint], address: str) -> AsyncIterator[None]:
    """Inside, what the gateways hold already is held on, however long that lasts."""
    renewing = asyncio.create_task(_renew(gateways, address))
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


async def _renew(gateways: Sequence[Endpoint], address: str) -> None:
    while True:
        await asyncio.sleep(RENEW_EVERY_S)
        await asyncio.gather(*(_renew_at(gateway, address) for gateway in gateways), return_exceptions=True)


async def _renew_at(gateway: Endpoint, address: str) -> None:
    async with Peer(gateway.name, gateway.host, gateway.port) as peer:
        await peer.call(RenewHold(address=address), timeout_s=5)


class Gateways:
    """Connected before the freeze: a hold must cost one message. `round_trip_s`: to the farthest; `held_s`: how long
    they hold, 0 before."""

    def __init__(self, job: Migration) -> None:
        self._job = job
        self._address = job.source.status.spec.address.split("/")[0]
        self._stand_in = stand_in(job.request.id)
        self._peers: list[Peer] = []
        self._held_at_s = 0.0
        self.round_trip_s = 0.0

    @property
    def held_s(self) -> float:
        return time.monotonic() - self._held_at_s if self._held_at_s else 0.0

    async def reach(self, stack: contextlib.AsyncExitStack) -> None:
        """Connect, and let each make room; the connections live as long as `stack`."""
        for gateway in self._job.gateways:
            peer = await stack.enter_async_context(Peer(gateway.name, gateway.host, gateway.port))
            # the shorter of two: one may have met a busy moment there
            took_s = min([await self._prepare(peer) for _ in range(2)])
            self.round_trip_s = max(self.round_trip_s, took_s)
            self._peers.append(peer)

    async def _prepare(self, peer: Peer) -> float:
        began_s = time.monotonic()
        await peer.call(PrepareHold(address=self._address), timeout_s=5)
        return time.monotonic() - began_s

    async def hold(self) -> None:
        """From the return on, packets for the service wait at the gateways."""
        self._held_at_s = time.monotonic()
        order = Hold(address=self._address, stand_in=self._stand_in)
        await asyncio.gather(*(peer.call(order, timeout_s=1) for peer in self._peers))

    def kept(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Inside, a hold lasts as long as it takes."""
        return keep_holding(self._job.gateways, self._address)

    async def release(self) -> None:
        """Let the packets go to wherever the service is now."""
        release = Release(address=self._address, mac=self._job.source.status.mac, stand_in=self._stand_in)
        await asyncio.gather(*(peer.call(release, timeout_s=2) for peer in self._peers), return_exceptions=True)

    async def undo(self) -> None:
        """The service runs here again: make room for the burst, open its port, let the packets in."""
        if not self._held_at_s:
            return
        service, port = self._job.request.service, self._job.node.port
        try:
            with contextlib.suppress(OSError):
                asyncio.get_running_loop().call_later(WIDE_BUFFERS_S, widen(self._job.source.cgroup.pids()))
            port.open(service)
            port.announce(service, self._stand_in, held_s=self.held_s)
        finally:
            await self.release()


def drain(port: ServicePort, service: str) -> None:
    """Let the program take what had arrived, as long as it takes any: what it leaves has to cross. The hold is on
    already, so that no more comes."""
    now = time.monotonic()
    deadline, patience = now + DRAIN_LIMIT_S, now + UNREAD_LIMIT_S
    least = math.inf
    while now < min(deadline, patience):
        time.sleep(0.0005)
        # a frame that is on its way through this host will be there in a moment
        waiting = port.receive_queue_bytes(service) + frames_waiting()
        if waiting == 0:
            return
        now = time.monotonic()
        if waiting < least:
            least, patience = waiting, now + UNREAD_LIMIT_S


def left_unread(port: ServicePort, service: str, pids: Iterable[int]) -> list[Datagram]:
    """What it left. For when it stands still and its port is shut."""
    let_the_kernel_catch_up()
    return unread(pids) if port.receive_queue_bytes(service) else []
