"""A region of bare namespaces with overlays up, as the agents would set them up."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from whimbrel.lab import build, topology
from whimbrel.network import netns
from whimbrel.network.hold import HoldTable
from whimbrel.network.overlay import Overlay
from whimbrel.network.port import ServicePort

TOPOLOGY = msgspec.structs.replace(topology.load(), prefix=f"n{os.getpid() % 100000}-")
GATEWAY = "10.77.0.1"
SERVICE, ADDRESS = "echo", "10.77.1.1/16"


class Region:
    """Nodes by name: `run(node, f, *args)` calls in the node's namespace, `path(node)` is its namespace."""

    def __init__(self, directory: Path) -> None:
        self.topology = TOPOLOGY
        self.endpoints = [self.topology.endpoint(site) for site in self.topology.sites]
        self.workers: dict[str, netns.Worker] = {}
        build.build(self.topology)
        for site in self.topology.sites:
            address = self.topology.bridge_address(site) if isinstance(site, topology.Gateway) else None
            self.workers[site.name] = netns.Worker(self.path(site.name))
            overlay = Overlay(self.topology.endpoint(site), address)
            self.run(site.name, overlay.up)
            self.run(site.name, overlay.set_peers, self.endpoints)
        edges = [edge.name for edge in self.topology.edges]
        self.ports = {edge: self.run(edge, ServicePort, directory / edge) for edge in edges}
        self.holds = {g.name: self.run(g.name, HoldTable) for g in self.topology.gateways}

    def path(self, node: str) -> Path:
        return self.topology.namespace_path(node)

    def run(self, node, function, *arguments):  # type: ignore[no-untyped-def]
        return self.workers[node](function, *arguments)

    def create(self, edge: str, service: str = SERVICE, address: str = ADDRESS):  # type: ignore[no-untyped-def]
        return self.run(edge, self.ports[edge].create, service, address, GATEWAY)

    def close(self) -> None:
        for edge, ports in self.ports.items():
            self.run(edge, ports.remove, SERVICE)
        for worker in self.workers.values():
            worker.close()
        build.remove(self.topology)
