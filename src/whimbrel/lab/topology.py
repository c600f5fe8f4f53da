"""What a lab consists of: frozen values read from a TOML file, and the addresses that follow from them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from importlib import resources
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Literal

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.model.node import Endpoint, Role
from whimbrel.ran import layout

NAMESPACE_DIR = Path("/run/netns")
ROUTER, CONTROLLER = "router", "ctl"
MIN_ADDRESSES = 8
SHIPPED = "default, shared, walk"
# interfaces on the router and on gateways are named after the node at the other end: 15 characters at most
_NAME = re.compile(r"[a-z][a-z0-9-]{0,13}[a-z0-9]")
_PREFIX = re.compile(r"[a-z][a-z0-9-]{0,6}-")


class Edge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    subnet: str


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`overlay_address`: its foot on the overlay; `access_subnet`: where its users live."""

    name: str
    subnet: str
    overlay_address: str
    access_subnet: str


class User(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`attached`: names of gateways, the one in use first."""

    name: str
    attached: tuple[str, ...]


class Storage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server whose file system the edges mount. `kind` says how, "auto" what works here (see `lab.storage`);
    `edges`: which of them mount it, none named means all."""

    subnet: str
    kind: Literal["auto", "sshfs"] = "auto"
    name: str = "store"
    edges: tuple[str, ...] = ()


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prefix` stands before every network namespace's name, so that a lab meets nothing else on the host. `radio`:
    what users hear of the gateways, and their ways (docs/radio.md)."""

    name: str
    overlay_subnet: str
    controller_subnet: str
    edges: tuple[Edge, ...]
    gateways: tuple[Gateway, ...]
    users: tuple[User, ...] = ()
    storage: Storage | None = None
    radio: layout.RadioLayout | None = None
    prefix: str = "wl-"
    port: int = 7411

    @property
    def sites(self) -> tuple[Edge | Gateway, ...]:
        """The nodes that run an agent."""
        return (*self.edges, *self.gateways)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Short names of all namespaces: router, controller, storage, sites, users."""
        storage = (self.storage.name,) if self.storage else ()
        sites = (site.name for site in self.sites)
        return (ROUTER, CONTROLLER, *storage, *sites, *(user.name for user in self.users))

    @property
    def storage_edges(self) -> tuple[Edge, ...]:
        """The edges that mount the storage server's file system."""
        if self.storage is None:
            return ()
        return tuple(edge for edge in self.edges if not self.storage.edges or edge.name in self.storage.edges)

    def namespace_path(self, name: str) -> Path:
        """Raises BadInput for a name that is not in this lab."""
        if name not in self.namespaces:
            raise BadInput(f"the lab has no node {name!r}: it has {', '.join(self.namespaces)}")
        return NAMESPACE_DIR / f"{self.prefix}{name}"

    def gateway(self, name: str) -> Gateway:
        return next(gateway for gateway in self.gateways if gateway.name == name)

    def endpoint(self, site: Edge | Gateway) -> Endpoint:
        host = str(node_address(site.subnet))
        role = Role.GATEWAY if isinstance(site, Gateway) else Role.EDGE
        return Endpoint(name=site.name, role=role, host=host, port=self.port, overlay_host=host)

    def bridge_address(self, gateway: Gateway) -> str:
        return f"{gateway.overlay_address}/{IPv4Network(self.overlay_subnet).prefixlen}"

    def user_address(self, user: User, gateway: Gateway) -> IPv4Address:
        return IPv4Network(gateway.access_subnet)[2 + self.users.index(user)]


def router_address(subnet: str) -> IPv4Address:
    """Address of the router in a subnet, and of a gateway in its access subnet."""
    return IPv4Network(subnet)[1]


def node_address(subnet: str) -> IPv4Address:
    return IPv4Network(subnet)[2]


def load(path: Path | None = None) -> Topology:
    """Read and check a topology: a file, or a shipped one by its name. Raises BadInput, naming file and field."""
    try:
        text = _shipped(path or Path("default")) or (path or Path("default")).read_bytes()
        return check(_located(msgspec.toml.decode(text, type=Topology), (path or Path()).absolute().parent))
    except FileNotFoundError as error:
        raise BadInput(f"there is no topology file {path}: check the path, or name a shipped one: {SHIPPED}") from error
    except OSError as error:
        raise BadInput(f"the topology file {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path or 'the default topology'} is no topology: {error}") from error
    except BadInput as error:
        raise BadInput(f"{path or 'the default topology'}: {error}") from error


def _located(topology: Topology, folder: Path) -> Topology:
    """With whole paths for the files that users' ways are read from: who reads them may stand elsewhere."""
    if topology.radio is None:
        return topology
    ways = [{kind: str(folder / name) for kind in ("gpx", "sumo") if (name := getattr(user, kind))}
            for user in topology.radio.users]  # fmt: skip
    users = [msgspec.structs.replace(user, **way) for user, way in zip(topology.radio.users, ways, strict=True)]
    return msgspec.structs.replace(topology, radio=msgspec.structs.replace(topology.radio, users=tuple(users)))


def _shipped(name: Path) -> bytes | None:
    """A topology that comes with Whimbrel; None for whatever is not a bare name of one."""
    file = resources.files("whimbrel.lab").joinpath(f"topologies/{name}.toml")
    return file.read_bytes() if len(name.parts) == 1 and not name.exists() and file.is_file() else None


def check(topology: Topology) -> Topology:
    """The topology itself if it can be built. Raises BadInput with field, value and what is wanted."""
    if not _PREFIX.fullmatch(topology.prefix):
        raise BadInput(f"prefix {topology.prefix!r} is not valid: a letter, then a-z, 0-9 or '-', 8 at most, '-' last")
    if not 0 < topology.port < 65536:
        raise BadInput(f"port {topology.port} is not valid: use 1 to 65535")
    if not topology.edges or not topology.gateways:
        raise BadInput("a lab needs at least one [[edges]] and one [[gateways]]")
    _check_names(topology)
    _check_subnets(topology)
    _check_overlay(topology)
    _check_users(topology)
    _check_storage(topology)
    if topology.radio is not None:
        attached = {user.name: user.attached for user in topology.users}
        layout.check(topology.radio, attached, [gateway.name for gateway in topology.gateways])
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
    networks = []
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
