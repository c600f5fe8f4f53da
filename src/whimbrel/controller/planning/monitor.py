"""The Monitor (`coordinated`, III): what users, nodes and services tell becomes one frozen observation. Pure.

What a node or a user says is checked here, once; what cannot be is left out and named, and the rest is planned with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import Any

import msgspec

from whimbrel.controller.planning.due import Due
from whimbrel.controller.views import NodeView
from whimbrel.model.application import Application, Session
from whimbrel.model.edge import (
    LEAST_DBM,
    MOST_BPS,
    MOST_MS,
    Amounts,
    BaseStation,
    Link,
    Observation,
    Server,
    Signal,
    Sizes,
    Speed,
    User,
    check_capacity,
)
from whimbrel.model.errors import BadInput
from whimbrel.model.node import Resources, Role, Tier
from whimbrel.model.numbers import wrong
from whimbrel.model.radio import UserReport

UNKNOWN_RATE_BPS = 1e9
"""Of a path that no configuration names a rate of, before anything has moved over it. Were it too high, the first
handover would wait for the memory; were it too low, the first migration would begin too soon, and nothing else."""
EMPTY: Mapping[Any, float] = MappingProxyType({})
UNKNOWN_DELTA_BYTES = float(1 << 20)
"""Before a service has moved: what `plan.convergence` calls small."""
MOST_USERS = 1000
ABOUT_AS_GOOD_DB = 3.0
SLA_REPORTS = 3
"""So many reports on end over the agreed delay make a violation: one that waited for a handover does not."""


@dataclass(frozen=True)
class Person:
    """A user with a service, or one that wants one (`server` ""). `going`: base station and server that it is on its
    way to: it is counted there, and not planned for. The rest is what was measured, None where nothing was;
    `moved_bytes`: of image and files that crossed with its service, at most."""

    session: Session
    application: Application
    report: UserReport
    server: str = ""
    due: Due | None = None
    going: tuple[str, str] | None = None
    memory_bytes: float = 0.0
    delta_bytes: float | None = None
    processing_ms: float | None = None
    tasks_per_s: float | None = None
    handover_ms: float = 500.0
    moved_bytes: float = 0.0
    violated: bool = False

    @property
    def storage_bytes(self) -> float:
        """What its service takes of a server's disk."""
        return max(self.application.storage_bytes, self.moved_bytes)


@dataclass(frozen=True)
class Region:
    """What stays the same for all users of one observation."""

    servers: tuple[Server, ...]
    base_stations: tuple[BaseStation, ...]
    links: tuple[Link, ...]
    unusable: tuple[tuple[str, str], ...] = ()
    """Servers that are left out because of what they say of themselves, and why."""


def region_of(
    nodes: Sequence[NodeView],
    stations: Mapping[str, BaseStation],
    others: Iterable[tuple[str, Amounts]] = (),
    carried: Mapping[frozenset[str], float] = EMPTY,
    held: Mapping[str, float] = EMPTY,
) -> Region:
    """Servers, base stations and links of the nodes that answer. `stations`: how base stations are set up, by the
    gateway's name; `others`: (server, amounts) that are taken by what is not planned for, its storage left out: that
    is not free any more; `carried`: bit/s that migrations got between two nodes; `held`: bytes of a server's storage
    that services hold that are planned for, and would be free without them."""
    up = [node for node in nodes if node.up and node.resources is not None]
    powers = [node.resources.computing_power for node in up if node.resources and has_power(node.resources)]
    usual_power = median(powers) if powers else 1.0
    taken: dict[str, list[Amounts]] = {}
    for server, amounts in others:
        taken.setdefault(server, []).append(amounts)
    servers, unusable = [], []
    for node in up:
        if node.role is Role.EDGE:
            try:
                servers.append(_server(node, usual_power, taken.get(node.name, ()), held.get(node.name, 0.0)))
            except BadInput as error:  # one node's mistake; the others are planned with
                unusable.append((node.name, str(error)))
    without = {name for name, _ in unusable}
    links = links_of([node for node in up if node.name not in without], carried)
    reached = {end for link in links for end in (link.a, link.b)}
    gateways = [node.name for node in up if node.role is Role.GATEWAY and node.name in reached]
    return Region(
        servers=tuple(servers),
        base_stations=tuple(stations.get(name) or BaseStation(name=name, max_users=MOST_USERS) for name in gateways),
        links=links,
        unusable=tuple(unusable),
    )


def has_power(resources: Resources) -> bool:
    """It has been measured, and can be true."""
    return not wrong(resources.computing_power, 1e-9, 1e12)


def observe(
    region: Region, people: Sequence[Person], speeds: Sequence[Speed], at_s: float
) -> tuple[Observation | None, dict[str, str]]:
    """The observation, and for each user that it leaves out why. None: there is nothing to plan with."""
    if not region.servers or not region.base_stations:
        return None, {person.session.user: "no server or no base station answers" for person in people}
    servers = {server.name for server in region.servers}
    stations = {station.name for station in region.base_stations}
    power = median(server.computing_power for server in region.servers)
    users, left = [], {}
    for person in people:
        name = person.session.user
        if person.server and person.server not in servers:
            left[name] = f"the agent of {person.server}, where its service is, does not answer"
            continue
        if not person.report.serving:
            left[name] = "it is out of coverage"
            continue
        if person.report.serving not in stations:
            left[name] = f"it is at {person.report.serving}, which is no base station that answers"
            continue
        try:
            users.append(_user(person, stations, servers, power))
        except BadInput as error:
            left[name] = str(error)
    known = tuple(speed for speed in speeds if speed.server in servers)
    return (
        Observation(
            servers=region.servers,
            base_stations=region.base_stations,
            links=region.links,
            users=tuple(users),
            speeds=known,
            at_s=at_s,
        ),
        left,
    )


def check_demand(region: Region, application: Application) -> None:
    """Raises BadInput for an application whose service no server could carry, though it were empty. Where nobody
    answers nothing is said."""
    if not region.servers or not region.base_stations:
        return
    users = (User(name="anybody", demand=application.demand),)
    try:
        check_capacity(
            Observation(servers=region.servers, base_stations=region.base_stations, links=region.links, users=users)
        )
    except BadInput as error:
        raise BadInput(f"application {application.name}: {error}") from None


def violates(delay_ms: float | None, most_ms: float) -> bool:
    """The SLA check: more delay than was agreed (0: nothing was)."""
    return most_ms > 0 and delay_ms is not None and delay_ms > most_ms


def _server(node: NodeView, usual_power: float, taken: Iterable[Amounts], held_bytes: float) -> Server:
    resources = node.resources
    assert resources is not None
    capacity = Amounts(
        cpus=resources.cpu_capacity or float(resources.cpus),
        memory_bytes=float(resources.memory_capacity_bytes or resources.memory_total_bytes),
        storage_bytes=resources.disk_available_bytes + held_bytes,
        network_bps=resources.network_capacity_bps or MOST_BPS,
    )
    capacity.check(f"server {node.name}")  # before it is reckoned with: less than nothing would become nothing
    for one in taken:
        capacity = Amounts(
            cpus=max(0.0, capacity.cpus - one.cpus),
            memory_bytes=max(0.0, capacity.memory_bytes - one.memory_bytes),
            storage_bytes=capacity.storage_bytes,
            network_bps=max(0.0, capacity.network_bps - one.network_bps),
        )
    return Server(
        name=node.name,
        capacity=capacity,
        computing_power=resources.computing_power or usual_power,
        cloud=node.tier is Tier.CLOUD,
    )


def links_of(nodes: Sequence[NodeView], carried: Mapping[frozenset[str], float]) -> tuple[Link, ...]:
    """Both ends measure a path; what either of them knows counts. A rate is what the configuration says, or less where
    migrations got less."""
    roles = {node.name: node.role for node in nodes}
    trips: dict[frozenset[str], list[float]] = {}
    rates: dict[frozenset[str], list[float]] = {}
    for node in nodes:
        for path in node.paths:
            if path.to not in roles or path.to == node.name:
                continue
            if Role.EDGE not in (roles[node.name], roles[path.to]):
                continue
            pair = frozenset((node.name, path.to))
            if path.round_trip_ms is not None and not wrong(path.round_trip_ms, 0, MOST_MS):
                trips.setdefault(pair, []).append(path.round_trip_ms)
            if path.rate_bps > 0 and not wrong(path.rate_bps, 1, MOST_BPS):
                rates.setdefault(pair, []).append(path.rate_bps)
    links = []
    for pair, measured in trips.items():
        # a base station first, as B_bs and RTT_bs have it
        a, b = sorted(pair, key=lambda name: (roles[name] is Role.EDGE, name))
        seen_bps = carried.get(pair)
        rate_bps = min([*rates.get(pair, []), seen_bps]) if seen_bps else min(rates.get(pair, [UNKNOWN_RATE_BPS]))
        links.append(Link(a=a, b=b, bandwidth_bps=rate_bps, rtt_ms=min(measured)))
    return tuple(sorted(links, key=lambda link: (link.a, link.b)))


def _user(person: Person, stations: set[str], servers: set[str], power: float) -> User:
    application = person.application
    base_station, signals = _radio(person, stations)
    going = person.going
    server = going[1] if going is not None and going[1] in servers else person.server
    return User(
        name=person.session.user,
        demand=msgspec.structs.replace(application.demand, storage_bytes=person.storage_bytes),
        signals=signals,
        base_station=base_station,
        server=server,
        task_bytes=application.task_bytes,
        tasks_per_s=application.tasks_per_s if person.tasks_per_s is None else person.tasks_per_s,
        processing_ms=application.processing_ms if person.processing_ms is None else person.processing_ms,
        reference_power=application.reference_power or power,
        sizes=Sizes(
            checkpoint_bytes=person.memory_bytes,
            delta_bytes=UNKNOWN_DELTA_BYTES if person.delta_bytes is None else person.delta_bytes,
        ),
        handover_ms=person.handover_ms,
        violated=person.violated,
    )


def _radio(person: Person, stations: set[str]) -> tuple[str, tuple[Signal, ...]]:
    """b, and what is heard at t and t'. Where the radio is about to leave its base station, that one is lost at t', and
    of the others those count that are about as good as the one it would go to. Who has left since its service was
    placed is where it is, and b is the base station that it was placed for (see `Planner.follows_handover`)."""
    report, due, placed_for = person.report, person.due, person.session.base_station
    heard = {one.base_station: one.filtered_dbm for one in report.hears if one.base_station in stations}
    if person.going is not None:
        station = person.going[0]
        return station, ((Signal(station, heard[station]),) if station in heard else ())
    heard.setdefault(report.serving, LEAST_DBM)
    if due is None:
        if placed_for in stations and placed_for != report.serving:
            return placed_for, (Signal(report.serving, heard[report.serving]),)
        return report.serving, tuple(Signal(name, level) for name, level in heard.items())
    then = {name: due.levels_dbm.get(name, level) for name, level in heard.items()}
    least_dbm = then.get(due.target, max(then.values())) - ABOUT_AS_GOOD_DB
    signals = [Signal(report.serving, heard[report.serving], LEAST_DBM)]
    signals += [
        Signal(name, level, then[name])
        for name, level in heard.items()
        if name != report.serving and (name == due.target or then[name] >= least_dbm)
    ]
    return report.serving, tuple(signals)
