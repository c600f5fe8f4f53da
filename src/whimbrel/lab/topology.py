"""What a lab consists of: frozen values read from a TOML file, and the addresses that follow from them."""

from __future__ import annotations

from importlib import resources
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Literal

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.model.link import LinkShape
from whimbrel.model.node import Endpoint, Role, Tier
from whimbrel.model.units import parse_duration_ms, parse_rate_bps, parse_size_bytes
from whimbrel.ran import layout

NAMESPACE_DIR = Path("/run/netns")
ROUTER, CONTROLLER = "router", "ctl"
Position = tuple[float, float]
"""East and north of the map's corner, in metres."""


class Router(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where nodes of one place meet. A topology that names none has one, called `router`."""

    name: str


class WideLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link between two routers; or the shape of one that is there anyway, between a node and its router or a user
    and its gateway. `rate` like ``100mbit``, `delay` one way like ``50ms``, `queue` like ``512KiB``."""

    between: tuple[str, str]
    rate: str = ""
    delay: str = ""
    queue: str = ""

    @property
    def shape(self) -> LinkShape:
        """Raises BadInput for what is no rate, time or size."""
        return LinkShape(
            rate_bps=parse_rate_bps(self.rate) if self.rate else 0.0,
            delay_ms=parse_duration_ms(self.delay) if self.delay else 0.0,
            queue_bytes=parse_size_bytes(self.queue) if self.queue else 0,
        )


class Edge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`at`: its router (the first one if not said). `cpus` and `memory` (like ``2GiB``): what its services share, all
    of the machine if not said."""

    name: str
    subnet: str
    at: str = ""
    tier: Tier = Tier.EDGE
    cpus: float | None = None
    memory: str = ""
    position: Position | None = None

    @property
    def memory_bytes(self) -> int:
        return parse_size_bytes(self.memory) if self.memory else 0


class Gateway(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`overlay_address`: its foot on the overlay; `access_subnet`: where its users live. With `nat` they appear with
    the gateway's address. As a base station it has a position, a power and a number of users that it can serve."""

    name: str
    subnet: str
    overlay_address: str
    access_subnet: str
    at: str = ""
    nat: bool = False
    position: Position | None = None
    tx_power_dbm: float | None = None
    max_users: int | None = None


class User(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`attached`: names of gateways, the one in use first. `position`: where it is at the beginning."""

    name: str
    attached: tuple[str, ...]
    position: Position | None = None


class Storage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server whose file system the edges mount. `kind` says how, "auto" what works here (see `lab.storage`);
    `edges`: which of them mount it, none named means all. Where the machine cannot give it, a lab that has it not as
    `required` comes up without."""

    subnet: str
    kind: Literal["auto", "nfs", "sshfs"] = "auto"
    required: bool = True
    name: str = "store"
    edges: tuple[str, ...] = ()
    at: str = ""


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prefix` stands before every network namespace's name, so that a lab meets nothing else on the host. `delay_by`:
    who delays the links, "auto" what works here. `radio`: what users hear of the
    gateways, and their ways (docs/radio.md)."""

    name: str
    overlay_subnet: str
    controller_subnet: str
    edges: tuple[Edge, ...]
    gateways: tuple[Gateway, ...]
    users: tuple[User, ...] = ()
    routers: tuple[Router, ...] = ()
    links: tuple[WideLink, ...] = ()
    controller_at: str = ""
    storage: Storage | None = None
    summary: str = ""
    delay_by: Literal["auto", "netem", "relay"] = "auto"
    radio: layout.RadioLayout | None = None
    prefix: str = "wl-"
    port: int = 7411

    @property
    def router_names(self) -> tuple[str, ...]:
        """The first is where nodes are that name none."""
        return tuple(router.name for router in self.routers) or (ROUTER,)

    @property
    def sites(self) -> tuple[Edge | Gateway, ...]:
        """The nodes that run an agent."""
        return (*self.edges, *self.gateways)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Short names of all namespaces: routers, controller, storage, sites, users."""
        storage = (self.storage.name,) if self.storage else ()
        sites = (site.name for site in self.sites)
        return (*self.router_names, CONTROLLER, *storage, *sites, *(user.name for user in self.users))

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

    def router_of(self, node: Edge | Gateway | Storage) -> str:
        return node.at or self.router_names[0]

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
    from whimbrel.lab.topology_checks import check  # they read what is above

    try:
        text = _shipped(path or Path("default")) or (path or Path("default")).read_bytes()
        return check(_located(msgspec.toml.decode(text, type=Topology), (path or Path()).absolute().parent))
    except FileNotFoundError as error:
        raise BadInput(
            f"there is no topology file {path}: check the path, or name a shipped one: {', '.join(shipped())}"
        ) from error
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


def shipped() -> tuple[str, ...]:
    """Names of the topologies that come with Whimbrel, the default first."""
    folder = resources.files("whimbrel.lab").joinpath("topologies")
    names = sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))
    return tuple(sorted(names, key=lambda name: name != "default"))
