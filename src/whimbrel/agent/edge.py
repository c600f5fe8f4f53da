"""What only an edge's agent has: it runs services, sends them and takes them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from whimbrel.agent.config import AgentConfig
from whimbrel.agent.images import Images
from whimbrel.agent.incoming import Incoming
from whimbrel.agent.outgoing import Outgoing
from whimbrel.agent.service_calls import ServiceCalls
from whimbrel.agent.services import ServiceHost
from whimbrel.agent.shared import SharedWatch
from whimbrel.checkpoint.kerndat import ensure_cache
from whimbrel.checkpoint.swrk import criu_path
from whimbrel.migrate.nursery import Nursery
from whimbrel.model.errors import BadInput
from whimbrel.model.service import EngineKind
from whimbrel.network.port import ServicePort
from whimbrel.runtime.capacity import limit_capacity, node_cgroup
from whimbrel.runtime.engines.base import Engine
from whimbrel.runtime.engines.docker import Docker
from whimbrel.runtime.engines.lxc import Lxc
from whimbrel.runtime.engines.podman import Podman
from whimbrel.wire import calls
from whimbrel.wire.rpc import Handler


def mount_run_dir(directory: Path) -> Path:
    """The node's tmpfs for work files: page images there cost no disk, and CRIU keeps its feature cache."""
    run_dir = directory / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(run_dir):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "whimbrel", str(run_dir)], check=True)
    return run_dir


def prepare(config: AgentConfig) -> Path:
    """Limit what services may use, make the folder for work files and return it. Blocks. Raises BadInput."""
    if config.cpus is not None and config.cpus > (have := os.cpu_count() or 1):
        raise BadInput(f"cpus {config.cpus:g} is more than this machine has, {have}: ask for no more")
    limit_capacity(node_cgroup(config.name), config.cpus, config.memory_bytes)
    run_dir = mount_run_dir(config.directory)
    ensure_cache(run_dir)
    return run_dir


class Edge:
    """The parts of one node; `run_dir` as `prepare` made it."""

    def __init__(self, config: AgentConfig, nursery: Nursery, shared: SharedWatch, run_dir: Path) -> None:
        port = ServicePort(config.directory / "netns", config.overlay_gateways)
        engines: dict[EngineKind, Engine] = {
            EngineKind.DOCKER: Docker(Path(config.docker_socket)),
            EngineKind.PODMAN: Podman(Path(config.podman_socket)),
            EngineKind.LXC: Lxc(Path(config.lxc_path), run_dir / "lxc", criu_path()),
        }
        self.services = ServiceHost(config.name, config.directory, port, config.overlay_gateway, engines, shared)
        self.incoming = Incoming(config, self.services, run_dir, nursery)
        self.outgoing = Outgoing(config, self.services, port, run_dir, nursery)
        self.images = Images(config.name, config.host, self.services.images, nursery)

    async def start(self) -> None:
        """Take up what an earlier agent left."""
        await self.images.load()
        await self.services.load()
        await self.incoming.settle_leftovers()
        await self.services.sweep()
        await self.outgoing.load()
        self._settling = asyncio.create_task(self.outgoing.settle_leftovers())
        self._tending = asyncio.create_task(self.services.tend())

    def handlers(self) -> dict[type[calls.Call], Handler]:
        table: dict[type[calls.Call], Handler] = {}
        for part in (ServiceCalls(self.services), self.images, self.services.guest_images, self.incoming):
            table.update(part.handlers())
        table[calls.Migrate] = self.outgoing.migrate
        table[calls.MoveFreeze] = self.outgoing.move_freeze
        table[calls.CancelMigration] = self.outgoing.cancel
        table[calls.ResolveMigration] = self.outgoing.resolve
        table[calls.GetMigration] = self.outgoing.get
        return table
