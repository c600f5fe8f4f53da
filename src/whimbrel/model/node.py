"""Nodes: where services run, and gateways that lead users to them."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Role(StrEnum):
    EDGE = "edge"
    GATEWAY = "gateway"


class Tier(StrEnum):
    """How far from the user a server stands: with a base station, between, or in the cloud."""

    EDGE = "edge"
    REGIONAL = "regional"
    CLOUD = "cloud"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node's agent listens (`host`, `port`), and `overlay_host`, its VXLAN tunnel end (an IPv4 address)."""

    name: str
    role: Role
    host: str
    port: int
    overlay_host: str


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What must agree between two nodes before a container can cross; and what strategies need: the source
    `write_protect_tracking` or, for some, `soft_dirty` bits, the destination `lazy_pages` (see `plan.means`)."""

    whimbrel: str
    machine: str
    kernel: str
    criu: str
    runc: str
    cpu_features: tuple[str, ...] = ()
    write_protect_tracking: bool = False
    soft_dirty: bool = False
    lazy_pages: bool = False
    shared: tuple[str, ...] = ()
    """Identities of the shared file systems that the node mounts, in working order."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """`stage_available_bytes`: room in the tmpfs where images are staged (memory that is free counts, too)."""

    cpus: int
    load_1min: float
    memory_total_bytes: int
    memory_available_bytes: int
    disk_available_bytes: int
    stage_available_bytes: int


class SharedMount(msgspec.Struct, frozen=True, kw_only=True):
    """A node's shared file system. `id` tells it from others: nodes with the same one mount the same file system.
    `problem`: why it cannot be used, `roots_problem`: why no root file system can live there; empty when all is
    well."""

    directory: str
    id: str = ""
    kind: str = ""
    free_bytes: int = 0
    round_trip_ms: float = 0.0
    problem: str = ""
    roots_problem: str = ""


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    endpoint: Endpoint
    capabilities: Capabilities
    resources: Resources
    services: tuple[str, ...] = ()
    shared: SharedMount | None = None
