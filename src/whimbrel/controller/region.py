"""The nodes of the region and the connections to their agents, kept up for as long as the controller runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from whimbrel.controller.problems import Unknown
from whimbrel.controller.together import Together
from whimbrel.controller.views import NodeView
from whimbrel.model.errors import BadInput, Unreachable, WhimbrelError
from whimbrel.model.node import ComputingPower, Endpoint, NodeStatus, Role, Tier
from whimbrel.wire.calls import GetNode, MeasurePower, SetPeers
from whimbrel.wire.rpc import Peer

STATUS_TIMEOUT_S = 3.0
POWER_TIMEOUT_S = 90.0
RETRY_S = 1.0

log = structlog.get_logger()


class Region:
    """One `Peer` for each node, connected again after a loss; every agent hears of all nodes when it
    (re)connects."""

    def __init__(self, nodes: Iterable[Endpoint], *, retry_s: float = RETRY_S) -> None:
        self.nodes = {node.name: node for node in nodes}
        self._peers = {node.name: Peer(node.name, node.host, node.port) for node in self.nodes.values()}
        self._retry_s = retry_s
        self._views = Together(self._ask_all)
        self._keepers: list[asyncio.Task[None]] = []
        self.listeners: list[Callable[[str, str], None]] = []
        """Told of a node's name when its agent connects ("") or is lost (why)."""

    async def start(self) -> None:
        self._keepers = [
            asyncio.create_task(self._keep(name, peer), name=f"keep {name}") for name, peer in self._peers.items()
        ]

    async def close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for peer in self._peers.values():
            await peer.close()

    def endpoint(self, name: str) -> Endpoint:
        """Raises Unknown, with the names that would do."""
        if name not in self.nodes:
            raise Unknown(f"there is no node {name!r}: the region has {', '.join(sorted(self.nodes))}")
        return self.nodes[name]

    def edge(self, name: str) -> Endpoint:
        """The same for a node that services can run on. Raises Unknown or BadInput."""
        node = self.endpoint(name)
        if node.role is not Role.EDGE:
            edges = ", ".join(edge.name for edge in self.edges())
            raise BadInput(f"node {name} is a {node.role} and runs no services: choose one of {edges or '(no edge)'}")
        return node

    def edges(self) -> list[Endpoint]:
        return [node for node in self.nodes.values() if node.role is Role.EDGE]

    def gateways(self) -> list[Endpoint]:
        return [node for node in self.nodes.values() if node.role is Role.GATEWAY]

    def peer(self, name: str) -> Peer:
        self.endpoint(name)
        return self._peers[name]

    async def status(self, name: str) -> NodeStatus:
        """What the node's agent says of it now. Raises Unknown or Unreachable."""
        status: NodeStatus = await self.peer(name).call(GetNode(), timeout_s=STATUS_TIMEOUT_S)
        return status

    async def require_up(self, names: Iterable[str]) -> None:
        """Raises Unreachable for the first of the nodes whose agent does not answer."""
        await asyncio.gather(*(self.status(name) for name in names))

    async def view(self, name: str) -> NodeView:
        """One node, live. Raises Unknown."""
        return await self._view(self.endpoint(name))

    async def measure_power(self, name: str) -> ComputingPower:
        """Have the node's agent run its benchmark again. Raises Unknown, BadInput, Unreachable."""
        power: ComputingPower = await self.peer(self.edge(name).name).call(MeasurePower(), timeout_s=POWER_TIMEOUT_S)
        return power

    async def views(self) -> list[NodeView]:
        """All nodes, live, in the order of the configuration."""
        return await self._views()

    async def _ask_all(self) -> list[NodeView]:
        return list(await asyncio.gather(*(self._view(node) for node in self.nodes.values())))

    async def _view(self, node: Endpoint) -> NodeView:
        status: NodeStatus | None = None
        problem = ""
        try:
            status = await self.status(node.name)
        except WhimbrelError as error:
            problem = str(error)
        return NodeView(
            name=node.name,
            role=node.role,
            host=node.host,
            port=node.port,
            overlay_host=node.overlay_host,
            up=status is not None,
            error=problem,
            services=status.services if status else (),
            capabilities=status.capabilities if status else None,
            resources=status.resources if status else None,
            shared=status.shared if status else None,
            tier=status.tier if status else Tier.EDGE,
            nat=bool(status and status.nat),
            service_use=status.service_use if status else (),
            paths=status.paths if status else (),
        )

    def _tell(self, name: str, problem: str) -> None:
        for listener in self.listeners:
            listener(name, problem)

    async def _keep(self, name: str, peer: Peer) -> None:
        """Connect, tell the agent who its peers are, wait for the loss of the connection; for ever."""
        introduction = SetPeers(peers=tuple(self.nodes.values()))
        reachable: bool | None = None
        while True:
            try:
                await peer.call(introduction)
                if not reachable:
                    log.info("agent connected", node=name)
                    self._tell(name, "")
                reachable = True
                await peer.wait_lost()
                log.warning("agent lost", node=name)
                self._tell(name, "the connection to its agent is lost")
            except Unreachable as error:
                if reachable is not False:  # one line for each change, not for each attempt
                    log.warning("agent unreachable", node=name, error=str(error))
                    self._tell(name, str(error))
                reachable = False
            except WhimbrelError as error:
                log.error("agent refuses its peers", node=name, error=str(error))
                reachable = False
            await asyncio.sleep(self._retry_s)
