"""`whimbrel agent`: put the parts of one node together and answer calls until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import structlog

from whimbrel.agent.config import AgentConfig, load_config
from whimbrel.agent.images import Images
from whimbrel.agent.incoming import Incoming
from whimbrel.agent.inventory import collect_capabilities, collect_resources
from whimbrel.agent.metrics import serve_metrics
from whimbrel.agent.monitor import Monitor
from whimbrel.agent.outgoing import Outgoing
from whimbrel.agent.service_calls import ServiceCalls
from whimbrel.agent.services import ServiceHost
from whimbrel.agent.shared import SharedWatch
from whimbrel.checkpoint.kerndat import ensure_cache
from whimbrel.checkpoint.swrk import criu_path
from whimbrel.logs import configure
from whimbrel.migrate.nursery import Nursery
from whimbrel.model.errors import BadInput, Refused
from whimbrel.model.node import ComputingPower, NodeStatus, Role
from whimbrel.model.service import EngineKind
from whimbrel.network import nat
from whimbrel.network.hold import HoldTable
from whimbrel.network.overlay import Overlay
from whimbrel.network.port import ServicePort
from whimbrel.runtime.capacity import limit_capacity, node_cgroup
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.engines.base import Engine
from whimbrel.runtime.engines.docker import Docker
from whimbrel.runtime.engines.lxc import Lxc
from whimbrel.runtime.engines.podman import Podman
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, Handler, RpcServer

log = structlog.get_logger()


def mount_run_dir(directory: Path) -> Path:
    """The node's tmpfs for work files: page images there cost no disk, and CRIU keeps its feature cache."""
    run_dir = directory / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(run_dir):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "whimbrel", str(run_dir)], check=True)
    return run_dir


class Agent:
    """One node. Edges run services; gateways hold packets; both are on the overlay."""

    def __init__(self, config: AgentConfig, nursery: Nursery) -> None:
        self.config = config
        self.nursery = nursery
        self.overlay = Overlay(config.endpoint, config.bridge_address or None)
        self.holds: HoldTable | None = None
        self.shared = SharedWatch(config.name, config.shared_directory)
        self.services: ServiceHost | None = None
        self.images: Images | None = None
        self.outgoing: Outgoing | None = None
        self.incoming: Incoming | None = None
        self.monitor = Monitor(config, self._service_groups)

    async def start(self) -> None:
        config = self.config
        config.directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self.overlay.up)
        if config.role is Role.GATEWAY:
            await asyncio.to_thread(nat.translate, config.nat)
            self.holds = HoldTable()
        if config.role is Role.EDGE:
            if config.cpus is not None and config.cpus > (have := os.cpu_count() or 1):
                raise BadInput(f"cpus {config.cpus:g} is more than this machine has, {have}: ask for no more")
            await asyncio.to_thread(limit_capacity, node_cgroup(config.name), config.cpus, config.memory_bytes)
            run_dir = await asyncio.to_thread(mount_run_dir, config.directory)
            await asyncio.to_thread(ensure_cache, run_dir)
            port = ServicePort(config.directory / "netns", config.overlay_gateways)
            engines: dict[EngineKind, Engine] = {
                EngineKind.DOCKER: Docker(Path(config.docker_socket)),
                EngineKind.PODMAN: Podman(Path(config.podman_socket)),
                EngineKind.LXC: Lxc(Path(config.lxc_path), run_dir / "lxc", criu_path()),
            }
            await self.shared.start()
            self.services = ServiceHost(
                config.name, config.directory, port, config.overlay_gateway, engines, self.shared
            )
            self.incoming = Incoming(config, self.services, run_dir, self.nursery)
            self.outgoing = Outgoing(config, self.services, port, run_dir, self.nursery)
            self.images = Images(config.name, config.host, self.services.images, self.nursery)
            await self.images.load()
            await self.services.load()
            await self.incoming.settle_leftovers()
            await self.services.sweep()
            await self.outgoing.load()
            self._settling = asyncio.create_task(self.outgoing.settle_leftovers())
            self._tending = asyncio.create_task(self.services.tend())
        self.monitor.start()

    async def stop(self) -> None:
        """Services run on; the agent only leaves. Holds are let go: nobody would release them."""
        await asyncio.to_thread(self.nursery.close)
        await self.monitor.stop()
        await self.shared.stop()
        if self.holds is not None:
            await asyncio.to_thread(self.holds.restore)

    def _service_groups(self) -> dict[str, Cgroup]:
        services = self.services
        return {name: services.cgroup(name) for name in services.names()} if services is not None else {}

    def handlers(self) -> dict[type[calls.Call], Handler]:
        table: dict[type[calls.Call], Handler] = {calls.GetNode: self._node, calls.SetPeers: self._set_peers}
        calls_of_services = ServiceCalls(self.services) if self.services is not None else None
        guest_images = self.services.guest_images if self.services is not None else None
        for part in (calls_of_services, self.images, guest_images, self.incoming):
            if part is not None:
                table.update(part.handlers())
        if self.outgoing is not None:
            table[calls.MeasurePower] = self._measure_power
            table[calls.Migrate] = self.outgoing.migrate
            table[calls.CancelMigration] = self.outgoing.cancel
            table[calls.ResolveMigration] = self.outgoing.resolve
            table[calls.GetMigration] = self.outgoing.get
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
        services = tuple(self.services.names()) if self.services is not None else ()
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
        self.holds.hold(call.address)  # well under 1 ms: a thread would cost more than it saves

    async def _renew_hold(self, call: calls.RenewHold, _: EmitEvent) -> None:
        assert self.holds is not None
        self.holds.renew(call.address)

    async def _release(self, call: calls.Release, _: EmitEvent) -> None:
        assert self.holds is not None
        self.holds.release(call.address, call.mac)


async def serve(config: AgentConfig, nursery: Nursery) -> int:
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


def run(config_path: Path) -> int:
    """Run the agent of a node until SIGTERM. Raises BadInput, Refused."""
    if os.geteuid() != 0:
        raise Refused("the agent must run as root: it freezes and restores other processes")
    config, nursery = load_config(config_path), Nursery()
    if config.log == "json":
        configure(config.log)
    if config.role is Role.EDGE and (code := nursery.start()) is not None:
        return code  # not the agent: a process that was forked from it, at its end
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(serve(config, nursery))
    return 130
