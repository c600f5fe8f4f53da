"""A topology as a graph: its wires, the way from router to router, and what a path has to offer."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from whimbrel.lab.topology import CONTROLLER, Topology
from whimbrel.model.link import LinkShape

UPLINK = "eth0"
TRANSFER = IPv4Network("169.254.0.0/16")  # between routers, a /30 each
HOP_MS = 0.01  # of two ways with the same delay the one with fewer routers


@dataclass(frozen=True)
class Foot:
    """One end of a wire."""

    node: str
    ifname: str


@dataclass(frozen=True)
class Wire:
    """`transfer`: the addresses of both ends, between routers only."""

    a: Foot
    b: Foot
    shape: LinkShape
    transfer: tuple[IPv4Address, IPv4Address] | None = None

    @property
    def name(self) -> str:
        return f"{self.a.node}--{self.b.node}"


def homes(topology: Topology) -> dict[str, str]:
    """Name of a node -> name of the router it is at; users are at no router."""
    found = {CONTROLLER: topology.controller_at or topology.router_names[0]}
    if topology.storage is not None:
        found[topology.storage.name] = topology.router_of(topology.storage)
    return found | {site.name: topology.router_of(site) for site in topology.sites}


def wires(topology: Topology) -> tuple[Wire, ...]:
    """All links of the lab: nodes to their router, routers among each other, users to gateways. Of links that name
    what is not there, nothing is said here (see `topology_checks`)."""
    return (*_router_wires(topology), *_node_wires(topology), *user_wires(topology))


def _shape(topology: Topology, a: str, b: str) -> LinkShape:
    return next((link.shape for link in topology.links if set(link.between) == {a, b}), LinkShape())


def _router_wires(topology: Topology) -> Iterator[Wire]:
    routers = set(topology.router_names)
    number = 0
    for link in topology.links:
        a, b = link.between
        if a != b and {a, b} <= routers:
            base = int(TRANSFER.network_address) + 4 * number
            number += 1
            yield Wire(Foot(a, b), Foot(b, a), link.shape, (IPv4Address(base + 1), IPv4Address(base + 2)))


def _node_wires(topology: Topology) -> Iterator[Wire]:
    for node, router in homes(topology).items():
        yield Wire(Foot(router, node), Foot(node, UPLINK), _shape(topology, node, router))


def user_wires(topology: Topology) -> tuple[Wire, ...]:
    return tuple(
        Wire(Foot(gateway, user.name), Foot(user.name, gateway), _shape(topology, user.name, gateway))
        for user in topology.users
        for gateway in user.attached
    )


def reachable(topology: Topology, router: str) -> set[str]:
    return set(ways_from(topology, router))


@dataclass(frozen=True)
class Way:
    """From one router to another: the first step (None at home), and what the links on it come to."""

    first: Wire | None
    shape: LinkShape


def ways_from(topology: Topology, router: str) -> dict[str, Way]:
    """The quickest way to every router that can be reached, by delay (Dijkstra)."""
    links = list(_router_wires(topology))
    found: dict[str, Way] = {}
    waiting: list[tuple[float, int, str, Way]] = [(0.0, 0, router, Way(None, LinkShape()))]
    number = 0
    while waiting:
        cost, _, here, way = heapq.heappop(waiting)
        if here in found:
            continue
        found[here] = way
        for wire in links:
            ends = {wire.a.node: wire.b.node, wire.b.node: wire.a.node}
            if here in ends and ends[here] not in found:
                number += 1
                onward = Way(way.first or wire, joined(way.shape, wire.shape))
                heapq.heappush(waiting, (cost + wire.shape.delay_ms + HOP_MS, number, ends[here], onward))
    return found


def joined(*shapes: LinkShape) -> LinkShape:
    """Links one after the other: the lowest rate, the sum of the delays."""
    rates = [shape.rate_bps for shape in shapes if shape.rate_bps]
    return LinkShape(rate_bps=min(rates, default=0.0), delay_ms=sum(shape.delay_ms for shape in shapes))


def path(topology: Topology, a: str, b: str) -> LinkShape:
    """What lies between two nodes at routers, by name."""
    if a == b:
        return LinkShape()
    at = homes(topology)
    way = ways_from(topology, at[a])[at[b]].shape
    return joined(_shape(topology, a, at[a]), way, _shape(topology, b, at[b]))


def uplink_bps(topology: Topology, node: str) -> float:
    """What a node can send at most: its own link's rate, else all that leaves its router; 0 where there is no limit."""
    router = homes(topology)[node]
    own = _shape(topology, node, router).rate_bps
    away = [wire.shape.rate_bps for wire in _router_wires(topology) if router in (wire.a.node, wire.b.node)]
    return own or (sum(away) if away and all(away) else 0.0)
