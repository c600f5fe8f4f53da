"""Services of the region: the agents are the truth, this module asks them and keeps names and addresses
unique."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from whimbrel.controller.problems import Unknown
from whimbrel.controller.region import Region
from whimbrel.controller.together import Together
from whimbrel.controller.views import ServiceList
from whimbrel.model.errors import BadInput, Unreachable
from whimbrel.model.service import ExecResult, ServiceProbe, ServiceSpec, ServiceState, ServiceStatus
from whimbrel.wire.calls import (
    AdoptService,
    Call,
    ExecInService,
    InspectService,
    ListServices,
    ProbeService,
    ReleaseService,
    RemoveService,
    RunService,
    ServiceLogs,
)

LIST_TIMEOUT_S = 5.0
RUN_TIMEOUT_S = 600.0  # the image may have to be unpacked first
EXEC_TIMEOUT_S = 600.0
PROBE_TIMEOUT_S = 60.0

# While a service moves, both its nodes may name it for a moment: the one where it runs is meant.
_PREFERENCE = (ServiceState.RUNNING, ServiceState.MIGRATING, ServiceState.STARTING, ServiceState.STOPPED)


class Services:
    """What `whimbrel service …` asks for."""

    def __init__(self, region: Region, pool: ipaddress.IPv4Interface) -> None:
        self._region = region
        self._pool = pool
        self._checking = asyncio.Lock()
        self._listed = Together(self._list)
        self._starting: dict[str, ServiceSpec] = {}
        # What each node last said: a node that is down keeps its claim on names and addresses.
        self._last_seen: dict[str, tuple[ServiceStatus, ...]] = {}
        self.listeners: list[Callable[[str, str, str], None]] = []
        """Told of service, node and what became of it there."""

    async def list(self) -> ServiceList:
        """All services, by name; nodes that do not answer are named, not hidden."""
        return await self._listed()

    async def _list(self) -> ServiceList:
        edges = [node.name for node in self._region.edges()]
        answers = await asyncio.gather(*(self._ask(name) for name in edges))
        found: dict[str, ServiceStatus] = {}
        for statuses in answers:
            for status in statuses or ():
                known = found.get(status.spec.name)
                if known is None or _PREFERENCE.index(status.state) < _PREFERENCE.index(known.state):
                    found[status.spec.name] = status
        unreachable = tuple(name for name, answer in zip(edges, answers, strict=True) if answer is None)
        return ServiceList(services=tuple(found[name] for name in sorted(found)), unreachable=unreachable)

    async def find(self, name: str) -> ServiceStatus:
        """Where the service is and what it does. Raises Unknown."""
        listed = await self.list()
        for status in listed.services:
            if status.spec.name == name:
                return status
        for node in listed.unreachable:
            if any(status.spec.name == name for status in self._last_seen.get(node, ())):
                raise Unreachable(
                    f"service {name} was last seen on {node}, whose agent does not answer: start it again"
                )
        names = ", ".join(status.spec.name for status in listed.services) or "none"
        hint = f" ({', '.join(listed.unreachable)} did not answer and may run it)" if listed.unreachable else ""
        raise Unknown(f"there is no service {name!r}: running are {names}{hint}")

    async def inspect(self, name: str) -> ServiceStatus:
        status: ServiceStatus = await self._at_home(name, InspectService(name=name))
        return status

    async def logs(self, name: str, tail_bytes: int) -> str:
        text: str = await self._at_home(name, ServiceLogs(name=name, tail_bytes=tail_bytes))
        return text

    async def exec(self, name: str, argv: tuple[str, ...]) -> ExecResult:
        if not argv:
            raise BadInput(f"no command to run in {name} is given: add one after --")
        result: ExecResult = await self._at_home(name, ExecInService(name=name, argv=argv), timeout_s=EXEC_TIMEOUT_S)
        return result

    async def probe(self, name: str, interval_s: float) -> ServiceProbe:
        """How much memory it has, and how much of it it writes in the interval."""
        call = ProbeService(name=name, interval_s=interval_s)
        found: ServiceProbe = await self._at_home(name, call, timeout_s=PROBE_TIMEOUT_S + interval_s)
        return found

    async def remove(self, name: str, *, keep_volumes: bool = False) -> None:
        await self._forget(name, RemoveService(name=name, keep_volumes=keep_volumes))

    async def release(self, name: str) -> None:
        """Another engine's container is a service no longer; it runs on there. Raises BadInput for one of ours."""
        await self._forget(name, ReleaseService(name=name))

    async def _forget(self, name: str, call: Call) -> None:
        home = await self.find(name)
        await self._region.peer(home.node).call(call, timeout_s=60.0)
        self._last_seen[home.node] = tuple(
            status for status in self._last_seen.get(home.node, ()) if status.spec.name != name
        )
        self._tell(name, home.node, "released" if isinstance(call, ReleaseService) else "removed")

    async def run(self, spec: ServiceSpec, node: str) -> ServiceStatus:
        """Start a service on an edge node; an empty `spec.address` means: choose a free one.

        Raises Unknown (node), BadInput (name or address taken, address outside of the pool), Unreachable
        (agent down) and whatever the agent refuses.
        """
        return await self._start(spec, node, lambda reserved: RunService(spec=reserved))

    async def adopt(self, spec: ServiceSpec, node: str, container: str) -> ServiceStatus:
        """Make a running container of another engine on `node` a service. Raises as `run` does."""
        return await self._start(spec, node, lambda reserved: AdoptService(spec=reserved, container=container))

    async def _start(self, spec: ServiceSpec, node: str, call: Callable[[ServiceSpec], Call]) -> ServiceStatus:
        home = self._region.edge(node)
        spec = await self._reserve(spec)
        try:
            status: ServiceStatus = await self._region.peer(home.name).call(call(spec), timeout_s=RUN_TIMEOUT_S)
            self._tell(spec.name, home.name, "runs")
            return status
        finally:
            del self._starting[spec.name]

    def _tell(self, name: str, node: str, what: str) -> None:
        for listener in self.listeners:
            listener(name, node, what)

    async def _at_home(self, name: str, call: Any, *, timeout_s: float = 30.0) -> Any:
        home = await self.find(name)
        return await self._region.peer(home.node).call(call, timeout_s=timeout_s)

    async def _ask(self, node: str) -> tuple[ServiceStatus, ...] | None:
        try:
            statuses: tuple[ServiceStatus, ...] = await self._region.peer(node).call(
                ListServices(), timeout_s=LIST_TIMEOUT_S
            )
        except Unreachable:
            return None
        self._last_seen[node] = statuses
        return statuses

    async def _reserve(self, spec: ServiceSpec) -> ServiceSpec:
        """Check name and address against the whole region and claim them until the agent has answered."""
        async with self._checking:
            # Taken before the agents are asked: a start that ends meanwhile is in one of the two.
            starting = dict(self._starting)
            await self.list()
            seen = [status for statuses in self._last_seen.values() for status in statuses]
            claims = [(status.spec, status.node) for status in seen]
            claims += [(other, "a node") for other in starting.values()]
            for other, node in claims:
                if other.name == spec.name:
                    raise BadInput(
                        f"service name {spec.name!r} is already used on {node}: "
                        f"choose another, or `whimbrel service rm {spec.name}` first"
                    )
            spec = msgspec.structs.replace(spec, address=self._address(spec.address, claims))
            self._starting[spec.name] = spec
            return spec

    def _address(self, wanted: str, claims: Iterable[tuple[ServiceSpec, str]]) -> str:
        taken = {ipaddress.IPv4Interface(spec.address).ip: (spec, node) for spec, node in claims}
        network = self._pool.network
        first, last = max(self._pool.ip, network.network_address + 1), network.broadcast_address - 1
        if not wanted:
            for number in range(int(first), int(last) + 1):
                address = ipaddress.IPv4Address(number)
                if address not in taken and number & 0xFF not in (0, 255):
                    return f"{address}/{network.prefixlen}"
            raise BadInput(f"no address of the pool {self._pool} is free: remove a service or widen address_pool")
        try:
            address = ipaddress.IPv4Interface(wanted).ip
        except ValueError as error:
            raise BadInput(
                f"{wanted!r} is not an IPv4 address: write it like {first + 1}/{network.prefixlen}"
            ) from error
        if "/" in wanted and not wanted.endswith(f"/{network.prefixlen}"):
            raise BadInput(f"address {wanted} has another prefix than the overlay: write {address}/{network.prefixlen}")
        if not first <= address <= last:
            raise BadInput(f"address {address} is not in the service pool {first} to {last}: choose one of it")
        if address in taken:
            spec, node = taken[address]
            raise BadInput(
                f"address {address} is already used by service {spec.name} on {node}: choose another or "
                "leave --address out"
            )
        return f"{address}/{network.prefixlen}"
