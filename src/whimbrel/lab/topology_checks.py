"""Can this topology be built? One clear line for the first fault found."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

from whimbrel.lab.routes import TRANSFER, reachable, wires
from whimbrel.lab.topology import CONTROLLER, ROUTER, Topology, WideLink
from whimbrel.model.errors import BadInput
from whimbrel.model.units import parse_size_bytes
from whimbrel.ran import layout

MIN_ADDRESSES = 8
LEAST_RATE_BPS, MOST_RATE_BPS = 64e3, 100e9
MOST_DELAY_MS = 5000.0
LEAST_QUEUE_BYTES = 16 << 10
LEAST_CPUS = 0.05
LEAST_MEMORY_BYTES = 64 << 20
STRONGEST_DBM = 80.0
# interfaces on the router and on gateways are named after the node at the other end: 15 characters at most
_NAME = re.compile(r"[a-z][a-z0-9-]{0,13}[a-z0-9]")
_PREFIX = re.compile(r"[a-z][a-z0-9-]{0,6}-")


def check(topology: Topology) -> Topology:
    """The topology itself if it can be built. Raises BadInput with field, value and what is wanted."""
    if not _PREFIX.fullmatch(topology.prefix):
        raise BadInput(f"prefix {topology.prefix!r} is not valid: a letter, then a-z, 0-9 or '-', 8 at most, '-' last")
    if not 0 < topology.port < 65536:
        raise BadInput(f"port {topology.port} is not valid: use 1 to 65535")
    if not topology.edges or not topology.gateways:
        raise BadInput("a lab needs at least one [[edges]] and one [[gateways]]")
    _check_names(topology)
    _check_places(topology)
    _check_subnets(topology)
    _check_overlay(topology)
    _check_users(topology)
    _check_storage(topology)
    _check_links(topology)
    _check_capacities(topology)
    _check_radio(topology)
    return topology


def _check_names(topology: Topology) -> None:
    seen: set[str] = set()
    for name in topology.namespaces:
        if not _NAME.fullmatch(name):
            raise BadInput(f"node name {name!r} is not valid: 2 to 15 of a-z, 0-9 and '-', a letter first, no '-' last")
        if name in seen:
            raise BadInput(f"node name {name!r} is used twice ({ROUTER!r} and {CONTROLLER!r} are the lab's own)")
        seen.add(name)


def _subnets(topology: Topology) -> Iterator[tuple[str, str]]:
    yield "overlay_subnet", topology.overlay_subnet
    yield "controller_subnet", topology.controller_subnet
    if topology.storage is not None:
        yield f"subnet of {topology.storage.name}", topology.storage.subnet
    for site in topology.sites:
        yield f"subnet of {site.name}", site.subnet
    for gateway in topology.gateways:
        yield f"access_subnet of {gateway.name}", gateway.access_subnet


def _check_subnets(topology: Topology) -> None:
    networks = [("the addresses between routers,", TRANSFER)] if topology.routers else []
    for field, text in _subnets(topology):
        try:
            network = IPv4Network(text)
        except ValueError as error:
            raise BadInput(
                f"{field}: {text!r} is not an IPv4 subnet ({error}): write it like 192.168.101.0/24"
            ) from error
        if network.num_addresses < MIN_ADDRESSES:
            raise BadInput(f"{field}: {text} is too small: use a /29 or larger")
        networks.append((field, network))
    for (field, network), (other, second) in itertools.combinations(networks, 2):
        if network.overlaps(second):
            raise BadInput(f"{other} {second} overlaps {field} {network}: every subnet must be its own")


def _check_overlay(topology: Topology) -> None:
    overlay = IPv4Network(topology.overlay_subnet)
    seen: set[IPv4Address] = set()
    for gateway in topology.gateways:
        try:
            address = IPv4Address(gateway.overlay_address)
        except ValueError as error:
            raise BadInput(
                f"overlay_address of {gateway.name}: {gateway.overlay_address!r} is not an IPv4 address"
            ) from error
        if address not in overlay or address in (overlay.network_address, overlay.broadcast_address):
            raise BadInput(f"overlay_address of {gateway.name}: {address} is not a host of overlay_subnet {overlay}")
        if address in seen:
            raise BadInput(f"overlay_address of {gateway.name}: {address} is used by another gateway")
        seen.add(address)


def _check_users(topology: Topology) -> None:
    known = {gateway.name for gateway in topology.gateways}
    for user in topology.users:
        if not user.attached or len(set(user.attached)) != len(user.attached):
            raise BadInput(f"attached of {user.name}: name one gateway or several different ones")
        for name in user.attached:
            if name not in known:
                raise BadInput(
                    f"attached of {user.name}: there is no gateway {name!r}, only {', '.join(sorted(known))}"
                )
    for gateway in topology.gateways:
        if len(topology.users) > IPv4Network(gateway.access_subnet).num_addresses - 3:
            raise BadInput(f"access_subnet of {gateway.name}: too small for {len(topology.users)} users")


def _check_storage(topology: Topology) -> None:
    known = {edge.name for edge in topology.edges}
    for name in topology.storage.edges if topology.storage else ():
        if name not in known:
            raise BadInput(f"edges of [storage]: there is no edge {name!r}, only {', '.join(sorted(known))}")


def _check_places(topology: Topology) -> None:
    """Every node hangs at a router that is there."""
    known = topology.router_names
    placed = [(f"at of {site.name}", site.at) for site in topology.sites]
    placed.append(("controller_at", topology.controller_at))
    if topology.storage is not None:
        placed.append(("at of [storage]", topology.storage.at))
    for field, at in placed:
        if (at or known[0]) not in known:
            raise BadInput(f"{field}: there is no router {at!r}, only {', '.join(known)}")


def _check_links(topology: Topology) -> None:
    for link in topology.links:
        _check_shape(_title(link), link)
    possible = {frozenset((wire.a.node, wire.b.node)) for wire in wires(topology)}
    nodes = set(topology.namespaces)
    seen: set[frozenset[str]] = set()
    for link in topology.links:
        title, pair = _title(link), frozenset(link.between)
        for name in link.between:
            if name not in nodes:
                raise BadInput(f"{title}: there is no node {name!r}, only {', '.join(topology.namespaces)}")
        if len(pair) != 2:
            raise BadInput(f"{title}: a node has no link to itself")
        if pair in seen:
            raise BadInput(f"{title}: it is there twice")
        if pair not in possible:
            raise BadInput(
                f"{title}: links join two routers, a node and the router it is at, or a user and its gateway"
            )
        seen.add(pair)
    island = [name for name in topology.router_names if name not in reachable(topology, topology.router_names[0])]
    if island:
        raise BadInput(f"router {island[0]} cannot be reached from {topology.router_names[0]}: add a [[links]] to it")


def _title(link: WideLink) -> str:
    return f"link {' - '.join(link.between)}"


def _check_shape(title: str, link: WideLink) -> None:
    try:
        shape = link.shape
    except BadInput as error:
        raise BadInput(f"{title}: {error}") from error
    if link.rate and not LEAST_RATE_BPS <= shape.rate_bps <= MOST_RATE_BPS:
        raise BadInput(f"{title}: rate {link.rate} is not possible: from 64kbit to 100gbit, or none for no limit")
    if shape.delay_ms > MOST_DELAY_MS:
        raise BadInput(f"{title}: delay {link.delay} is not possible: at most {MOST_DELAY_MS / 1e3:g}s one way")
    if link.queue and not link.rate:
        raise BadInput(f"{title}: a queue without a rate never fills: add rate, or leave queue out")
    if link.queue and shape.queue_bytes < LEAST_QUEUE_BYTES:
        raise BadInput(f"{title}: queue {link.queue} is too small: at least 16KiB")


def _check_capacities(topology: Topology) -> None:
    for edge in topology.edges:
        if edge.cpus is not None and not LEAST_CPUS <= edge.cpus <= 4096:
            raise BadInput(f"cpus of {edge.name}: {edge.cpus:g} is no capacity: a number from {LEAST_CPUS:g}")
        try:
            too_little = bool(edge.memory) and parse_size_bytes(edge.memory) < LEAST_MEMORY_BYTES
        except BadInput as error:
            raise BadInput(f"memory of {edge.name}: {error}") from error
        if too_little:
            raise BadInput(f"memory of {edge.name}: {edge.memory} is too little: at least 64MiB")


def require_capacities(topology: Topology) -> None:
    """Raises BadInput when a node is to have more than this machine."""
    have = os.cpu_count() or 1
    for edge in topology.edges:
        if edge.cpus is not None and edge.cpus > have:
            raise BadInput(f"cpus of {edge.name}: {edge.cpus:g}, but this machine has {have}: ask for no more")


def _check_radio(topology: Topology) -> None:
    if topology.radio is not None:
        attached = {user.name: user.attached for user in topology.users}
        layout.check(topology.radio, attached, [gateway.name for gateway in topology.gateways])
    for thing in (*topology.sites, *topology.users):
        if thing.position is not None and not all(math.isfinite(value) for value in thing.position):
            raise BadInput(f"position of {thing.name}: {list(thing.position)} is no place: [x, y] in metres")
    for gateway in topology.gateways:
        power = gateway.tx_power_dbm
        if power is not None and not -STRONGEST_DBM <= power <= STRONGEST_DBM:
            raise BadInput(f"tx_power_dbm of {gateway.name}: {power:g} is no power: from -80 to 80 dBm")
        if power is not None and gateway.position is None:
            raise BadInput(f"tx_power_dbm of {gateway.name}: a base station needs a position too: position = [x, y]")
        if gateway.max_users is not None and gateway.max_users < 1:
            raise BadInput(f"max_users of {gateway.name}: {gateway.max_users} is no number of users: at least 1")
