"""The problem (3a)-(3e) as arrays, made once from an observation; and what an answer to it is.

Axes: u users, b base stations, s servers, r the amounts of (3c). Each pair (b', s') that a user may be given is an
option.
Admissible is what (3d) allows (RSSI at t and at t' not below the floor), where a way leads from b' to s' and, for a
container that has to move, from s to s'. Within `Policy.hysteresis_db` of the present base station another one is no
option, unless there are more users at the present one than it may have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from whimbrel.model.edge import Observation
from whimbrel.model.placement import Policy
from whimbrel.plan.convergence import LONG_FREEZE_MS
from whimbrel.plan.delay import processing_ms, propagation_ms, transmission_ms
from whimbrel.plan.downtime import UNKNOWN, predict
from whimbrel.plan.placement.routes import routes
from whimbrel.plan.rates import floor_dbm, rate_bps, table_of
from whimbrel.plan.timing import MARGIN

Reals = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]
NOBODY = -1


@dataclass(frozen=True, eq=False)
class Problem:
    """`profit` [u, b, s] is what (3a) sums for each option, less the policy's dead band; -inf where it is none. `gain`
    and `cost` are the parts as in (1) and (2). `capacity` [s, r] and `places` [b] are the right sides of (3c) and (3e).

    `home_server`, `home_station` [u]: where the user is now, or -1. `stays_counted` [u]: should he be left, his
    container goes on taking its share of its server. Where a server has less than its containers take already, it does
    not (they are the excess), and nobody else is moved there.
    """

    observation: Observation
    policy: Policy
    profit: Reals
    gain: Reals
    cost: Reals
    demand: Reals
    capacity: Reals
    places: Indices
    home_server: Indices
    home_station: Indices
    stays_counted: Flags
    heard: Flags
    processing_ms: Reals
    transmission_ms: Reals
    rtt_ms: Reals
    pre_migration_ms: Reals
    migration_ms: Reals

    @property
    def shape(self) -> tuple[int, int, int]:
        users, stations, servers = self.profit.shape
        return users, stations, servers

    @cached_property
    def options(self) -> Flags:
        return np.isfinite(self.profit)

    def value(self, choice: Indices) -> float:
        """The profit of an answer; who is left counts nothing."""
        placed = np.flatnonzero(choice >= 0)
        return float(flat(self.profit)[placed, choice[placed]].sum())


@dataclass(frozen=True, eq=False)
class Answer:
    """`choice` [u] is b * |S| + s, or -1 for who is left. `bound`: no answer that leaves no more users has more profit;
    `left_at_least`: none leaves fewer. `by`: what found it."""

    choice: Indices
    profit: float
    bound: float
    left_at_least: int
    by: str

    @property
    def left(self) -> int:
        return int((self.choice < 0).sum())


Solve = Callable[[Problem], Answer]


def flat(options: Reals) -> Reals:
    """[u, b, s] as [u, b * |S| + s]."""
    users, stations, servers = options.shape
    return options.reshape(users, stations * servers)


def formulate(observation: Observation, policy: Policy) -> Problem:
    """Raises BadInput for a technology without a rate table; the observation has checked all else."""
    servers, stations, users = observation.servers, observation.base_stations, observation.users
    server_index = {server.name: index for index, server in enumerate(servers)}
    station_index = {station.name: index for index, station in enumerate(stations)}
    home_server = np.array([server_index.get(user.server, NOBODY) for user in users], np.intp)
    home_station = np.array([station_index.get(user.base_station, NOBODY) for user in users], np.intp)
    demand = np.array([user.demand.as_tuple() for user in users]).reshape(-1, 4)
    capacity = np.array([server.capacity.as_tuple() for server in servers])
    places = np.array([station.max_users for station in stations], np.intp)
    power = np.array([server.computing_power for server in servers])
    everyone = np.arange(len(users))

    bandwidth_bps, rtt_ms = routes([one.name for one in stations] + [one.name for one in servers], observation.links)
    first = len(stations)
    between_bps, between_ms = bandwidth_bps[first:, first:], rtt_ms[first:, first:]
    wired_bps, wired_ms = bandwidth_bps[:first, first:], rtt_ms[:first, first:]

    heard, then_dbm, radio_bps = _radio(observation, station_index)
    candidates = heard & _clearly_better(then_dbm, heard, home_station, places, policy.hysteresis_db)

    # eq. (4)
    at_power = np.where(home_server >= 0, power[home_server], [user.reference_power for user in users])
    measured_ms = np.array([user.processing_ms for user in users])
    task_bytes = np.array([user.task_bytes for user in users])
    process_ms = processing_ms(measured_ms[:, None], at_power[:, None], power[None, :])
    transmit_ms = transmission_ms(task_bytes[:, None, None], radio_bps[:, :, None], wired_bps[None])
    delay_ms = process_ms[:, None, :] + transmit_ms + propagation_ms(wired_ms)[None]

    # eq. (5), (2)
    pre_ms, whole_ms, least_ms = _migration(observation, home_server, power, between_bps, between_ms)
    handover_ms = np.array([user.handover_ms for user in users])[:, None] * (
        (home_station[:, None] >= 0) & (home_station[:, None] != np.arange(len(stations)))
    )
    away_ms = handover_ms[:, :, None]
    move_ms = np.broadcast_to(whole_ms[:, None, :], delay_ms.shape)
    if policy.overlaps and policy.follows:
        hidden_ms = np.where(away_ms > 0, np.maximum(away_ms * (1 - MARGIN), LONG_FREEZE_MS), np.inf)
        move_ms = np.maximum(least_ms[:, None, :], np.minimum(move_ms, hidden_ms))
    cost = np.maximum(move_ms, away_ms) if policy.overlaps else move_ms + away_ms

    usable: Flags = np.asarray(candidates[:, :, None] & np.isfinite(delay_ms) & np.isfinite(whole_ms)[:, None, :])
    usable &= (places > 0)[None, :, None]
    fits: Flags = np.asarray((demand[:, None, :] <= capacity[None] * (1 + 1e-9)).all(axis=2))
    usable &= fits[:, None, :]
    taken = np.zeros_like(capacity)
    at_home: Flags = np.asarray(home_server >= 0)
    np.add.at(taken, home_server[at_home], demand[at_home])
    overfull: Flags = np.asarray((taken > capacity * (1 + 1e-9)).any(axis=1))
    newcomer: Flags = np.asarray(home_server[:, None] != np.arange(len(servers)))
    usable &= ~(newcomer & overfull[None])[:, None, :]
    stays_counted = at_home & ~overfull[home_server]

    # (1): against the delay where the user is now; where there is none (any more), against his worst option
    finite_ms = np.where(usable, delay_ms, -np.inf)
    worst_ms = np.maximum(finite_ms.max(axis=(1, 2), initial=0.0), 0.0)
    here_ms = delay_ms[everyone, home_station, home_server]
    at_both = (home_station >= 0) & at_home & heard[everyone, home_station] & np.isfinite(here_ms)
    reference_ms = np.where(at_both, here_ms, worst_ms)
    tasks = np.array([user.tasks_per_s for user in users]) * policy.horizon_s
    with np.errstate(invalid="ignore"):
        gain = np.where(usable, tasks[:, None, None] * (reference_ms[:, None, None] - delay_ms), 0.0)
    cost = np.where(usable, cost, 0.0)

    # the dead band: against the least delay with the container where it is; not for who is worse off than was agreed
    violated = np.array([user.violated for user in users], np.bool_)
    kept = np.where(usable & ~newcomer[:, None, :], delay_ms, np.inf).min(axis=(1, 2), initial=np.inf)
    band = tasks * policy.deadband * np.where(at_home & ~violated & np.isfinite(kept), kept, 0.0)
    profit = gain - policy.downtime_weight * cost - np.where(newcomer, band[:, None], 0.0)[:, None, :]
    return Problem(
        observation=observation,
        policy=policy,
        profit=np.where(usable, profit, -np.inf),
        gain=gain,
        cost=cost,
        demand=demand,
        capacity=capacity,
        places=places,
        home_server=home_server,
        home_station=home_station,
        stays_counted=stays_counted,
        heard=heard,
        processing_ms=process_ms,
        transmission_ms=transmit_ms,
        rtt_ms=wired_ms,
        pre_migration_ms=pre_ms,
        migration_ms=move_ms,
    )


def _radio(observation: Observation, station_index: dict[str, int]) -> tuple[Flags, Reals, Reals]:
    """[u, b]: whether (3d) allows it, the RSSI at t' in dBm (-inf: not heard), and B_ub in bit/s."""
    shape = len(observation.users), len(station_index)
    heard, then_dbm, radio_bps = np.zeros(shape, np.bool_), np.full(shape, -np.inf), np.zeros(shape)
    floors = []
    for station in observation.base_stations:
        table_of(station.technology)  # raises for one that there is not
        floors.append(floor_dbm(station.technology) if station.floor_dbm is None else station.floor_dbm)
    for number, user in enumerate(observation.users):
        for signal in user.signals:
            index = station_index[signal.base_station]
            station = observation.base_stations[index]
            then_dbm[number, index] = signal.then_dbm
            if min(signal.rssi_dbm, signal.then_dbm) >= floors[index]:
                radio_bps[number, index] = rate_bps(station.technology, signal.then_dbm) * station.rate_share
                heard[number, index] = True
    return heard, then_dbm, radio_bps


def _clearly_better(then_dbm: Reals, heard: Flags, home: Indices, places: Indices, hysteresis_db: float) -> Flags:
    """[u, b]: the base stations that are the present one or clearly stronger; all, for who has to leave his."""
    users = np.arange(len(home))
    attached: Flags = np.asarray((home >= 0) & heard[users, home])
    crowded: Flags = np.asarray(np.bincount(home[home >= 0], minlength=len(places)) > places)
    free = ~attached | crowded[home]
    here_dbm = np.where(attached, then_dbm[users, home], -np.inf)
    same = home[:, None] == np.arange(len(places))
    clear: Flags = free[:, None] | same | (then_dbm >= here_dbm[:, None] + hysteresis_db)
    return clear


def _migration(
    observation: Observation, home_server: Indices, power: Reals, between_bps: Reals, between_ms: Reals
) -> tuple[Reals, Reals, Reals]:
    """[u, s]: T_pre-mig and T_mig of eq. (5), and the least that T_mig can be where pages follow the resume, ms; 0 for
    who stays or is new, infinite where no way leads."""
    known = {speed.server: speed for speed in observation.speeds}
    speeds = [known.get(server.name, UNKNOWN) for server in observation.servers]
    ahead_ms = np.zeros((len(home_server), len(speeds)))
    move_ms, least_ms = np.zeros_like(ahead_ms), np.zeros_like(ahead_ms)
    for home in np.unique(home_server[home_server >= 0]):
        here = np.flatnonzero(home_server == home)
        sizes = [observation.users[number].sizes for number in here]
        for index, speed in enumerate(speeds):
            if index == home:
                continue
            if between_bps[home, index] <= 0:
                ahead_ms[here, index] = move_ms[here, index] = least_ms[here, index] = np.inf
                continue
            predicted = [
                predict(
                    one,
                    speeds[home],
                    speed,
                    source_power=power[home],
                    destination_power=power[index],
                    bandwidth_bps=float(between_bps[home, index]),
                    rtt_ms=float(between_ms[home, index]),
                )
                for one in sizes
            ]
            ahead_ms[here, index] = [one.pre_migration_ms for one in predicted]
            move_ms[here, index] = [one.migration_ms for one in predicted]
            least_ms[here, index] = [one.least_ms for one in predicted]
    return ahead_ms, move_ms, least_ms
