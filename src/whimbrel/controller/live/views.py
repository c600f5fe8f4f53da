"""What a map, a log and their listeners are told. Lengths in m, times in ms or unix seconds (`_s`)."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from whimbrel.model.decision import Decision
from whimbrel.model.migration import MigrationRecord, Progress
from whimbrel.model.node import Role, Tier
from whimbrel.model.service import EngineKind, ServiceState


class NodeMark(msgspec.Struct, frozen=True, kw_only=True):
    """A node on the map. Null is what nobody knows. CPU and memory: what its services take of what they may."""

    name: str
    role: Role
    tier: Tier
    up: bool
    error: str
    x_m: float | None
    y_m: float | None
    services: tuple[str, ...]
    cpu_percent: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    disk_used_bytes: int | None
    disk_total_bytes: int | None
    bps_in: float | None
    bps_out: float | None


class StationMark(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    gateway: str
    zone: str
    x_m: float | None
    y_m: float | None
    reach_m: float | None


class UserMark(msgspec.Struct, frozen=True, kw_only=True):
    """A user that reported lately. `serving` "": out of coverage; `rssi_dbm`: of the serving base station. A
    user of whom only the network tells is nowhere that is known: null."""

    name: str
    x_m: float | None
    y_m: float | None
    serving: str
    state: str
    rssi_dbm: float | None
    delay_ms: float | None
    application: str
    service: str
    seen_unix_s: float


class UserSamples(msgspec.Struct, frozen=True, kw_only=True):
    """What a chart of the last minutes shows: of each sample unix time in s, delay in ms and RSSI in dBm of the serving
    base station, the oldest first, a second or more apart; null is what was not known."""

    user: str
    samples: tuple[tuple[float, float | None, float | None], ...]


class ServiceMark(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    node: str
    address: str
    workload: str
    state: ServiceState
    engine: EngineKind
    image: str


class RegionSettings(msgspec.Struct, frozen=True, kw_only=True):
    planner: str
    paused: bool
    strategies: tuple[str, ...]
    version: str


class RegionView(msgspec.Struct, frozen=True, kw_only=True):
    """All that a map shows. `ways`: of users, x and y in m, the oldest first; `migrations`: those that run;
    `decisions`: the newest of the planner."""

    unix_s: float
    nodes: tuple[NodeMark, ...]
    base_stations: tuple[StationMark, ...]
    users: tuple[UserMark, ...]
    ways: dict[str, tuple[tuple[float, float], ...]]
    services: tuple[ServiceMark, ...]
    migrations: tuple[MigrationRecord, ...]
    decisions: tuple[Decision, ...]
    settings: RegionSettings


class Level(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Kind(StrEnum):
    USER = "user"
    HANDOVER = "handover"
    MIGRATION = "migration"
    PLANNER = "planner"
    NODE = "node"
    SERVICE = "service"


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the region's log; empty or null is what does not belong to it. `id` grows, also over restarts."""

    id: int = 0
    unix_s: float
    level: Level
    kind: Kind
    text: str
    user: str = ""
    cell: str = ""
    zone: str = ""
    x_m: float | None = None
    y_m: float | None = None
    service: str = ""
    node: str = ""


class MigrationNews(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At the start and at the end the record; between, by the migration's id, progress."""

    record: MigrationRecord | None = None
    id: str = ""
    progress: Progress | None = None
