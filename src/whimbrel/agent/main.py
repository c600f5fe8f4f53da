"""`whimbrel agent`: put the parts of one node together and answer calls until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

import structlog

from whimbrel.agent.config import AgentConfig
from whimbrel.agent.inventory import collect_capabilities, collect_resources
from whimbrel.agent.metrics import serve_metrics
from whimbrel.agent.monitor import Monitor
from whimbrel.agent.shared import SharedWatch
from whimbrel.logs import configure
from whimbrel.model.errors import Refused
from whimbrel.model.node import ComputingPower, NodeStatus, Role
from whimbrel.network import nat
from whimbrel.network.hold import HoldTable
from whimbrel.network.overlay import Overlay
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, Handler, RpcServer

if TYPE_CHECKING:
    from whimbrel.agent.edge import Edge
    from whimbrel.migrate.nursery import Nursery

log = structlog.get_logger()


class Agent:
    """One node. Edges run services; gateways hold packets; both are on the overlay."""

    def __init__(self, config: AgentConfig, nursery: Nursery | None) -> None:
        self.config = config
        self.nursery = nursery
        self.overlay = Overlay(config.endpoint, config.bridge_address or None)
        self.holds: HoldTable | None = None
        self.shared = SharedWatch(config.name, config.shared_directory)
        self.edge: Edge | None = None
        self.monitor = Monitor(config, self._service_groups)

    async def start(self) -> None:
        config = self.config
        config.directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self.overlay.up)
        if config.role is Role.GATEWAY:
            await asyncio.to_thread(nat.translate, config.nat)
            self.holds = HoldTable()
        if self.nursery is not None:
            await self._start_edge(self.nursery)
        self.monitor.start()

    async def _start_edge(self, nursery: Nursery) -> None:
        from whimbrel.agent import edge

        run_dir = await asyncio.to_thread(edge.prepare, self.config)
        await self.shared.start()
        self.edge = edge.Edge(self.config, nursery, self.shared, run_dir)
        await self.edge.start()

    async def stop(self) -> None:
        """Services run on; the agent only leaves. Holds are let go: nobody would release them."""
        if self.nursery is not None:
            await asyncio.to_thread(self.nursery.close)
        await self.monitor.stop()
        await self.shared.stop()
        if self.holds is not None:
            await asyncio.to_thread(self.holds.restore)

    def _service_groups(self) -> dict[str, Cgroup]:
        services = self.edge.services if self.edge is not None else None
        return {name: services.cgroup(name) for name in services.names()} if services is not None else {}

    def handlers(self) -> dict[type[calls.Call], Handler]:
        table: dict[type[calls.Call], Handler] = {calls.GetNode: self._node, calls.SetPeers: self._set_peers}
        if self.edge is not None:
            table.update(self.edge.handlers())
            table[calls.MeasurePower] = self._measure_power
        if self.holds is not None:
            table[calls.PrepareHold] = self._prepare_hold
            table[calls.Hold] = self._hold
            table[calls.RenewHold] = self._renew_hold
            table[calls.Release] = self._release
        return table

    async def _node(self, _: calls.GetNode, emit: EmitEvent) -> NodeStatus:
        capabilities, resources = await asyncio.gather(
            asyncio.to_thread(collect_capabilities),
            asyncio.to_thread(collect_resources, self.config, self.monitor),
        )
        services = tuple(self.edge.services.names()) if self.edge is not None else ()
        return NodeStatus(
            endpoint=self.config.endpoint,
            capabilities=self.shared.added_to(capabilities),
            resources=resources,
            services=services,
            shared=self.shared.mount,
            tier=self.config.tier,
            nat=bool(self.config.nat),
            service_use=await asyncio.to_thread(self.monitor.services),
            paths=self.monitor.paths(),
        )

    async def _measure_power(self, _: calls.MeasurePower, __: EmitEvent) -> ComputingPower:
        return await self.monitor.measure_power()

    async def _set_peers(self, call: calls.SetPeers, _: EmitEvent) -> None:
        await asyncio.to_thread(self.overlay.set_peers, call.peers)
        self.monitor.set_peers(call.peers)

    async def _prepare_hold(self, call: calls.PrepareHold, _: EmitEvent) -> None:
        assert self.holds is not None
        await asyncio.to_thread(self.holds.prepare, call.address)

    async def _hold(self, call: calls.Hold, _: EmitEvent) -> None:
        assert self.holds is not None
        self.holds.hold(call.address, call.stand_in)  # well under 1 ms: a thread would cost more than it saves

    async def _renew_hold(self, call: calls.RenewHold, _: EmitEvent) -> None:
        assert self.holds is not None
        self.holds.renew(call.address)

    async def _release(self, call: calls.Release, _: EmitEvent) -> None:
        assert self.holds is not None
        self.holds.release(call.address, call.mac, call.stand_in)


async def serve(config: AgentConfig, nursery: Nursery | None) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    agent = Agent(config, nursery)
    await agent.start()
    server = RpcServer(agent.handlers())
    try:
        await server.start(config.host, config.port)
    except OSError as error:
        raise Refused(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; is an agent running already?"
        ) from None
    metrics = serve_metrics(config, agent.monitor) if config.metrics else None
    log.info("agent ready", node=config.name, role=config.role, host=config.host, port=config.port)
    await stopped.wait()
    if metrics is not None:
        await asyncio.to_thread(metrics.close)
    await server.close()
    await agent.stop()
    return 0


def run(config: AgentConfig) -> int:
    """Run the agent of a node until SIGTERM; what only an edge has is imported for an edge only. Raises Refused."""
    if os.geteuid() != 0:
        raise Refused("the agent must run as root: it freezes and restores other processes")
    nursery = None
    if config.log == "json":
        configure(config.log)
    if config.role is Role.EDGE:
        from whimbrel.migrate.nursery import Nursery

        nursery = Nursery()
        if (code := nursery.start()) is not None:
            return code  # not the agent: a process that was forked from it, at its end
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(serve(config, nursery))
    return 130
