"""Regions made up from a seed, for benchmarks and tests: as many users, servers and base stations as asked for.

Base stations stand in a grid, each with a server beside it as long as there are servers; the last server is the cloud:
stronger, further away. Users stand anywhere, attached to the base station that they hear best; their services run
somewhere near, as far as there is room. `tightness`: what share of all that the servers have the services ask for.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from whimbrel.model.edge import Amounts, BaseStation, Link, Observation, Server, Signal, Sizes, Speed, User

SPACING_M = 200.0
DBM_AT_10_M, EXPONENT, SHADOW_DB = -42.0, 2.6, 4.0


def region(
    *,
    users: int,
    servers: int,
    stations: int,
    tightness: float = 0.85,
    heard: int = 0,
    settled: bool = True,
    attached: bool = True,
    seed: int = 0,
) -> Observation:
    """`heard`: so many base stations each user hears well enough, the strongest (0: all that there are); `settled`
    False: nothing is deployed yet; `attached` False: nobody is, so that every base station is an option."""
    random = np.random.default_rng(seed)
    columns = int(np.ceil(np.sqrt(stations)))
    mast = np.array([(index % columns, index // columns) for index in range(stations)]) * SPACING_M
    place = random.uniform(-SPACING_M / 2, mast.max(axis=0) + SPACING_M / 2, (users, 2))
    distance_m = np.maximum(10.0, np.linalg.norm(place[:, None] - mast[None], axis=2))
    rssi_dbm = DBM_AT_10_M - 10 * EXPONENT * np.log10(distance_m / 10) + random.normal(0, SHADOW_DB, distance_m.shape)
    # a floor this low keeps far base stations candidates: the hardest case
    floor_dbm = min(-110.0, float(rssi_dbm.min()) - 1.0)
    nearest = rssi_dbm.argmax(axis=1)

    demand = np.stack(
        [
            random.choice([0.25, 0.5, 1.0, 2.0], users),
            random.choice([256e6, 512e6, 1e9, 2e9, 4e9], users),
            random.uniform(0.1e9, 2e9, users),
            random.uniform(1e6, 2e7, users),
        ],
        axis=1,
    )
    power = random.choice([1000.0, 1500.0, 2000.0, 3000.0], servers)
    share = random.dirichlet(np.full(servers, 6.0))
    capacity = demand.sum(axis=0)[None] / tightness * share[:, None] * random.uniform(0.85, 1.15, (servers, 4))
    capacity *= (demand.sum(axis=0) / tightness / capacity.sum(axis=0))[None]
    capacity = np.maximum(capacity, demand.max(axis=0)[None])
    power[-1] *= 2

    at = np.full(users, -1)
    if settled:
        free = capacity.copy()
        for user in np.argsort(-(demand / capacity.mean(axis=0)).max(axis=1)):
            order = np.argsort(np.abs(np.arange(servers) - nearest[user] % servers) + random.uniform(0, 6, servers))
            for server in order:
                if (demand[user] <= free[server]).all():
                    at[user], free[server] = server, free[server] - demand[user]
                    break

    edge = [
        Server(name=f"edge-{i + 1}", capacity=_amounts(capacity[i]), computing_power=power[i]) for i in range(servers)
    ]
    edge[-1] = Server(name="cloud", capacity=_amounts(capacity[-1]), computing_power=power[-1], cloud=True)
    links = [
        Link(
            a=f"bs-{b + 1}",
            b=edge[b % max(1, servers - 1)].name,
            bandwidth_bps=1e9,
            rtt_ms=float(random.uniform(0.5, 3)),
        )
        for b in range(stations)
    ]
    for one, other in pairwise(edge[:-1]):
        links.append(Link(a=one.name, b=other.name, bandwidth_bps=100e6, rtt_ms=float(random.uniform(2, 20))))
    if servers > 1:
        links += [
            Link(a=one.name, b="cloud", bandwidth_bps=75e6, rtt_ms=float(random.uniform(60, 150))) for one in edge[:-1]
        ]
    return Observation(
        servers=tuple(edge),
        base_stations=tuple(
            BaseStation(name=f"bs-{b + 1}", max_users=int(np.ceil(users / stations * 1.5)), technology="lte-10MHz",
            floor_dbm=floor_dbm) for b in range(stations)
        ),
        links=tuple(links),
        users=tuple(
            _user(u, demand[u], rssi_dbm[u], nearest[u], edge[at[u]].name if at[u] >= 0 else "",
                  heard, attached, random)
            for u in range(users)
        ),
        speeds=tuple(
            Speed(server=one.name, checkpoint_fixed_ms=30, psi=float(random.uniform(0.5e-4, 2e-4)), restore_fixed_ms=20,
                  rho=float(random.uniform(0.5e-4, 1e-4)), samples=5)
            for one in edge
        ),
    )  # fmt: skip


def _amounts(row: np.ndarray) -> Amounts:
    return Amounts(
        cpus=float(row[0]), memory_bytes=float(row[1]), storage_bytes=float(row[2]), network_bps=float(row[3])
    )


def _user(
    number: int,
    demand: np.ndarray,
    rssi_dbm: np.ndarray,
    nearest: int,
    server: str,
    heard: int,
    attached: bool,
    random: np.random.Generator,
) -> User:
    order = np.argsort(-rssi_dbm)[: heard or None]
    memory_bytes = float(demand[1])
    return User(
        name=f"user-{number + 1}",
        demand=_amounts(demand),
        signals=tuple(Signal(f"bs-{b + 1}", float(rssi_dbm[b])) for b in sorted(order)),
        base_station=f"bs-{nearest + 1}" if attached else "",
        server=server,
        task_bytes=float(random.uniform(5e3, 2e5)),
        tasks_per_s=float(random.uniform(0.5, 10)),
        processing_ms=float(random.uniform(5, 100)),
        reference_power=1000.0,
        sizes=Sizes(
            image_bytes=memory_bytes,
            checkpoint_bytes=memory_bytes * float(random.uniform(0.1, 0.6)),
            delta_bytes=float(random.uniform(5e4, 8e6)),
        ),
    )
