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
    `write_protect_tracking` or, for some, `soft_dirty` bits, the destination `lazy_pages`, both `rsync` (see
    `plan.means`)."""

    whimbrel: str
    machine: str
    kernel: str
    criu: str
    runc: str
    cpu_features: tuple[str, ...] = ()
    write_protect_tracking: bool = False
    soft_dirty: bool = False
    lazy_pages: bool = False
    rsync: bool = False
    shared: tuple[str, ...] = ()
    """Identities of the shared file systems that the node mounts, in working order."""


class ComputingPower(msgspec.Struct, frozen=True, kw_only=True):
    """Of one processor of a machine, wholly used: events of the benchmark (`agent.primes`) per second. `machine` is the
    identity of the machine that it was measured on."""

    events_per_s: float
    measured_unix_s: float
    machine: str


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """`stage_available_bytes`: room in the tmpfs where images are staged (memory that is free counts, too).

    What a planner reckons with: the node's services may use `cpu_capacity` processors (its limit, else the machine's)
    and `memory_capacity_bytes`, and lately used `cpus_used` and `memory_used_bytes`. `computing_power` is C_s of the
    paper on coordinated migration, eq. (4): events per second that a program of one thread gets done here; 0 until
    measured, and on gateways. `network_*`: of the interface that the node is reached by; a capacity of 0 is unknown."""

    cpus: int
    load_1min: float
    memory_total_bytes: int
    memory_available_bytes: int
    disk_available_bytes: int
    stage_available_bytes: int
    cpu_capacity: float = 0.0
    cpus_used: float = 0.0
    computing_power: float = 0.0
    memory_capacity_bytes: int = 0
    memory_used_bytes: int = 0
    disk_total_bytes: int = 0
    network_capacity_bps: float = 0.0
    network_received_bps: float = 0.0
    network_sent_bps: float = 0.0


class ServiceUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a service lately used: processors (1.0 is one wholly busy), and memory charged to its control group."""

    name: str
    cpus_used: float
    memory_bytes: int


class PathStatus(msgspec.Struct, frozen=True, kw_only=True):
    """From this node to another: the last round-trip time, None when there is no answer lately, and the rate that its
    configuration says the path has (0: unknown)."""

    to: str
    round_trip_ms: float | None = None
    measured_unix_s: float = 0.0
    rate_bps: float = 0.0


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
    tier: Tier = Tier.EDGE
    nat: bool = False
    service_use: tuple[ServiceUse, ...] = ()
    paths: tuple[PathStatus, ...] = ()
