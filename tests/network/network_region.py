"""A region of bare namespaces with overlays up, as the agents would set them up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
from pyroute2 import IPRoute

from whimbrel.lab import build, topology
from whimbrel.network import netlink, netns
from whimbrel.network.hold import HoldTable
from whimbrel.network.names import port_name
from whimbrel.network.overlay import Overlay, find_link
from whimbrel.network.port import ServicePort

TOPOLOGY = msgspec.structs.replace(topology.load(), prefix=f"n{os.getpid() % 100000}-")
GATEWAY = "10.77.0.1"
SERVICE, ADDRESS = "echo", "10.77.1.1/16"


def is_open(service: str) -> bool:
    """Do frames pass the service's port? To be called in its node's namespace."""
    with IPRoute() as ip:
        link = find_link(ip, port_name(service))
        data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA") if link is not None else None
        return data is not None and data.get_attr("IFLA_BRPORT_STATE") == netlink.BR_STATE_FORWARDING


class Region:
    """Nodes by name: `run(node, f, *args)` calls in the node's namespace, `path(node)` is its namespace."""

    def __init__(self) -> None:
        self.topology = TOPOLOGY
        self.endpoints = [self.topology.endpoint(site) for site in self.topology.sites]
        self.ports: dict[str, ServicePort] = {}
        self.holds: dict[str, HoldTable] = {}
        build.build(self.topology)
        self.workers = {site.name: netns.Worker(self.path(site.name)) for site in self.topology.sites}

    def begin(self, directory: Path) -> None:
        """Overlays, ports and holds, all of them new, and nothing learned."""
        for site in self.topology.sites:
            address = self.topology.bridge_address(site) if isinstance(site, topology.Gateway) else None
            overlay = Overlay(self.topology.endpoint(site), address)
            self.run(site.name, overlay.down)
            self.run(site.name, netns.write_sysctl, "net/ipv4/ip_forward", int(address is not None))
            self.run(site.name, overlay.up)
            self.run(site.name, overlay.set_peers, self.endpoints)
        edges = [edge.name for edge in self.topology.edges]
        self.ports = {edge: self.run(edge, ServicePort, directory / edge) for edge in edges}
        self.holds = {g.name: self.run(g.name, HoldTable) for g in self.topology.gateways}

    def end(self) -> None:
        for gateway, hold in self.holds.items():
            self.run(gateway, hold.restore)
        for edge, ports in self.ports.items():
            self.run(edge, ports.remove, SERVICE)

    def path(self, node: str) -> Path:
        return self.topology.namespace_path(node)

    def run(self, node, function, *arguments):  # type: ignore[no-untyped-def]
        return self.workers[node](function, *arguments)

    def create(self, edge: str, service: str = SERVICE, address: str = ADDRESS):  # type: ignore[no-untyped-def]
        return self.run(edge, self.ports[edge].create, service, address, GATEWAY)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        build.remove(self.topology)


def made() -> Iterator[Region]:
    region = None
    try:
        region = Region()
        yield region
    finally:
        if region is not None:
            region.close()
        build.remove(TOPOLOGY)
