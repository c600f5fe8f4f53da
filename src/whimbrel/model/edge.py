"""What the planner sees of a region at one moment (`coordinated` III and IV-A): servers, base stations, links, users.

The names are the paper's: a user u hears base stations b, its container D_u runs on a server s; t is now, t' the moment
that is planned for. The cloud is a server like the others (IV-A). Every value checks itself when it is made: BadInput
names the thing, the part and the possible range.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.model.numbers import check

MOST_BPS = 1e13
MOST_BYTES = 1e15
MOST_MS = 3.6e6
LEAST_DBM, MOST_DBM = -200.0, 30.0


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """Res(.) of constraint (3c): what a server has to give to services, or what a container takes."""

    cpus: float
    memory_bytes: float
    storage_bytes: float = 0.0
    network_bps: float = 0.0

    def check(self, whose: str) -> None:
        check(whose, "cpus", self.cpus, 0, 1e5)
        check(whose, "memory_bytes", self.memory_bytes, 0, MOST_BYTES)
        check(whose, "storage_bytes", self.storage_bytes, 0, 1e18)
        check(whose, "network_bps", self.network_bps, 0, MOST_BPS)

    def as_tuple(self) -> tuple[float, float, float, float]:
        """In the order of `AMOUNT_NAMES`."""
        return (self.cpus, self.memory_bytes, self.storage_bytes, self.network_bps)


AMOUNT_NAMES = ("CPU", "memory", "storage", "network")


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """`computing_power` is C_s: any benchmark's events per second, the same benchmark on all servers. `cloud`: the
    server that the `cloud` planner means."""

    name: str
    capacity: Amounts
    computing_power: float
    cloud: bool = False

    def __post_init__(self) -> None:
        self.capacity.check(f"server {self.name}")
        check(f"server {self.name}", "computing_power", self.computing_power, 1e-9, 1e12)


class BaseStation(msgspec.Struct, frozen=True, kw_only=True):
    """`max_users` is N_b of (3e). `technology` names a rate table (`plan.rates`). `floor_dbm`: the least RSSI that the
    receiver decodes (3d); null: the table's own. `rate_share`: what of the physical rate reaches the user."""

    name: str
    max_users: int
    technology: str = "802.11ac-80MHz"
    floor_dbm: float | None = None
    rate_share: float = 1.0

    def __post_init__(self) -> None:
        whose = f"base station {self.name}"
        check(whose, "max_users", self.max_users, 0, 1e6)
        check(whose, "rate_share", self.rate_share, 1e-6, 1.0)
        if self.floor_dbm is not None:
            check(whose, "floor_dbm", self.floor_dbm, LEAST_DBM, MOST_DBM)


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """Between a base station and a server (B_bs, RTT_bs), or between two servers (what a migration crosses); it leads
    both ways."""

    a: str
    b: str
    bandwidth_bps: float
    rtt_ms: float

    def __post_init__(self) -> None:
        whose = f"link {self.a} - {self.b}"
        check(whose, "bandwidth_bps", self.bandwidth_bps, 1.0, MOST_BPS)
        check(whose, "rtt_ms", self.rtt_ms, 0.0, MOST_MS)
        if self.a == self.b:
            raise BadInput(f"{whose} leads from {self.a} to itself: leave it out, that way is free")


class Signal(msgspec.Struct, frozen=True):
    """What a user hears of a base station: now (t), and as predicted for t' (null: as now)."""

    base_station: str
    rssi_dbm: float
    predicted_dbm: float | None = None

    def __post_init__(self) -> None:
        check(f"RSSI of base station {self.base_station}", "rssi_dbm", self.rssi_dbm, LEAST_DBM, MOST_DBM)
        if self.predicted_dbm is not None:
            whose = f"RSSI of base station {self.base_station}"
            check(whose, "predicted_dbm", self.predicted_dbm, LEAST_DBM, MOST_DBM)

    @property
    def then_dbm(self) -> float:
        """At t'."""
        return self.rssi_dbm if self.predicted_dbm is None else self.predicted_dbm


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """What eq. (5) is made of, in bytes: S_D the container (image), S_lambda its checkpoint ahead of the migration,
    S_delta-lambda what is left for the migration itself."""

    image_bytes: float = 0.0
    checkpoint_bytes: float = 0.0
    delta_bytes: float = 0.0

    def check(self, whose: str) -> None:
        check(whose, "image_bytes", self.image_bytes, 0, MOST_BYTES)
        check(whose, "checkpoint_bytes", self.checkpoint_bytes, 0, MOST_BYTES)
        check(whose, "delta_bytes", self.delta_bytes, 0, MOST_BYTES)


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A user and its offloaded service D_u, at t.

    `base_station` and `server` are b and s; "" for who is not attached, or whose service is not deployed yet.
    `task_bytes`
    is S_u, `tasks_per_s` how often it offloads one, `processing_ms` d_proc as measured at s (for a service that runs
    nowhere yet: on a server of `reference_power`). `handover_ms` is T_ho. `violated`: its agreed delay is
    not kept, so that anything better will do.
    """

    name: str
    demand: Amounts
    signals: tuple[Signal, ...] = ()
    base_station: str = ""
    server: str = ""
    task_bytes: float = 0.0
    tasks_per_s: float = 1.0
    processing_ms: float = 0.0
    reference_power: float = 1.0
    sizes: Sizes = Sizes()
    handover_ms: float = 500.0
    violated: bool = False

    def __post_init__(self) -> None:
        whose = f"user {self.name}"
        self.demand.check(whose)
        self.sizes.check(whose)
        check(whose, "task_bytes", self.task_bytes, 0, 1e12)
        check(whose, "tasks_per_s", self.tasks_per_s, 0, 1e6)
        check(whose, "processing_ms", self.processing_ms, 0, MOST_MS)
        check(whose, "reference_power", self.reference_power, 1e-9, 1e12)
        check(whose, "handover_ms", self.handover_ms, 0, MOST_MS)
        _no_name_twice(f"{whose} hears", (signal.base_station for signal in self.signals))


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What a server's migrations taught (`plan.downtime`). A checkpoint takes `checkpoint_fixed_ms` + psi x
    bytes / C_s, a restore `restore_fixed_ms` + rho x bytes / C_s. `samples` 0: these are the region's figures."""

    server: str
    checkpoint_fixed_ms: float
    psi: float
    restore_fixed_ms: float
    rho: float
    samples: int = 0


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """The whole region at `at_s` (any clock that does not jump). `speeds`: what is known of servers; the others get
    `plan.downtime.UNKNOWN`. Raises BadInput for names that are twice or lead nowhere, and base stations that no
    server can be reached from."""

    servers: tuple[Server, ...]
    base_stations: tuple[BaseStation, ...]
    links: tuple[Link, ...]
    users: tuple[User, ...] = ()
    speeds: tuple[Speed, ...] = ()
    at_s: float = 0.0

    def __post_init__(self) -> None:
        check("observation", "at_s", self.at_s, -1e12, 1e12)
        if not self.servers or not self.base_stations:
            raise BadInput("a region needs at least one server and one base station: there is nothing to plan with")
        servers = {server.name for server in self.servers}
        stations = {station.name for station in self.base_stations}
        _no_name_twice(
            "the region has", [*(one.name for one in self.servers), *(one.name for one in self.base_stations)]
        )
        _no_name_twice("the region has user", (user.name for user in self.users))
        pairs = set()
        for link in self.links:
            for end in (link.a, link.b):
                if end not in servers and end not in stations:
                    raise BadInput(f"link {link.a} - {link.b}: there is no server or base station {end}")
            if link.a in stations and link.b in stations:
                raise BadInput(f"link {link.a} - {link.b} joins two base stations: one end must be a server")
            if frozenset((link.a, link.b)) in pairs:
                raise BadInput(f"link {link.a} - {link.b} is there twice: keep one")
            pairs.add(frozenset((link.a, link.b)))
        reaching = {end for link in self.links for end in (link.a, link.b)}
        for station in stations - reaching:
            raise BadInput(f"base station {station} has no link to a server: who is there can reach no service")
        for user in self.users:
            if user.server and user.server not in servers:
                raise BadInput(f"user {user.name}: its service runs on {user.server}, which is no server of the region")
            for name in (user.base_station, *(signal.base_station for signal in user.signals)):
                if name and name not in stations:
                    raise BadInput(f"user {user.name}: there is no base station {name}")


def check_capacity(observation: Observation) -> None:
    """Raises BadInput when the region can never carry its users, wherever they are: a service that fits on no server
    though it were empty, all services together more than all servers, more users than all base stations take. For
    topologies and scenarios; while a region runs, a planner leaves such users where they are and says so."""
    total = [sum(part) for part in zip(*(server.capacity.as_tuple() for server in observation.servers), strict=True)]
    asked = [0.0] * len(AMOUNT_NAMES)
    for user in observation.users:
        demand = user.demand.as_tuple()
        asked = [sum(pair) for pair in zip(asked, demand, strict=True)]
        if not any(_fits(demand, server.capacity.as_tuple()) for server in observation.servers):
            raise BadInput(
                f"the service of user {user.name} fits on no server, not even an empty one: lower its demand"
            )
    for name, need, have in zip(AMOUNT_NAMES, asked, total, strict=True):
        if need > have * (1 + 1e-9):
            raise BadInput(f"all services need {need:g} of {name}, all servers have {have:g}: add servers")
    places = sum(station.max_users for station in observation.base_stations)
    if len(observation.users) > places:
        raise BadInput(f"there are {len(observation.users)} users, all base stations take {places}: raise max_users")


def _fits(demand: tuple[float, ...], capacity: tuple[float, ...]) -> bool:
    return all(need <= have * (1 + 1e-9) for need, have in zip(demand, capacity, strict=True))


def _no_name_twice(whose: str, names: Iterable[Any]) -> None:
    seen = set()
    for name in names:
        if not name or name in seen:
            raise BadInput(f"{whose} {name or 'one without a name'}{' twice' if name else ''}: give each its own name")
        seen.add(name)
