"""Small regions for tests, and what is right for them, computed the slow way from the paper's formulas: no array, no
solver and nothing of `whimbrel.plan.placement` is used here."""

from __future__ import annotations

from itertools import product

from hypothesis import strategies as st

from whimbrel.model.edge import Amounts, BaseStation, Link, Observation, Server, Signal, Sizes, Speed, User
from whimbrel.plan.rates import rate_bps

FLOOR = -82.0


def server(name: str, *, cpus: float = 4, power: float = 1000.0, memory: float = 8e9, cloud: bool = False) -> Server:
    capacity = Amounts(cpus=cpus, memory_bytes=memory, storage_bytes=1e12, network_bps=1e9)
    return Server(name=name, capacity=capacity, computing_power=power, cloud=cloud)


def station(name: str, max_users: int = 10) -> BaseStation:
    return BaseStation(name=name, max_users=max_users, technology="802.11n-20MHz", floor_dbm=FLOOR)


def user(name: str, at: str, on: str, heard: dict[str, float], **more: object) -> User:
    values: dict[str, object] = {
        "demand": Amounts(cpus=1, memory_bytes=1e9),
        "task_bytes": 50_000.0,
        "tasks_per_s": 2.0,
        "processing_ms": 20.0,
        "sizes": Sizes(image_bytes=2e8, checkpoint_bytes=1e8, delta_bytes=2e6),
        "handover_ms": 500.0,
    }
    signals = tuple(Signal(name, dbm) for name, dbm in heard.items())
    return User(name=name, base_station=at, server=on, signals=signals, **{**values, **more})  # type: ignore[arg-type]


def line(*users: User, cpus: float = 4, places: int = 10, at_s: float = 0.0) -> Observation:
    """The paper's testbed, figure 3: three edges in a row, each with its base station, 50 ms between neighbours at 100
    Mbit/s, and the cloud 150 ms away at 75 Mbit/s."""
    edges = [server(f"edge-{i}", cpus=cpus) for i in (1, 2, 3)]
    cloud = server("cloud", cpus=16, power=1500.0, memory=64e9, cloud=True)
    links = [Link(a=f"bs-{i}", b=f"edge-{i}", bandwidth_bps=1e9, rtt_ms=1.0) for i in (1, 2, 3)]
    links += [Link(a=f"edge-{i}", b=f"edge-{i + 1}", bandwidth_bps=100e6, rtt_ms=50.0) for i in (1, 2)]
    links += [Link(a=f"edge-{i}", b="cloud", bandwidth_bps=75e6, rtt_ms=150.0) for i in (1, 2, 3)]
    speeds = tuple(
        Speed(server=one.name, checkpoint_fixed_ms=20, psi=1e-4, restore_fixed_ms=20, rho=5e-5, samples=5)
        for one in (*edges, cloud)
    )
    return Observation(
        servers=(*edges, cloud),
        base_stations=tuple(station(f"bs-{i}", places) for i in (1, 2, 3)),
        links=tuple(links),
        users=users,
        speeds=speeds,
        at_s=at_s,
    )


@st.composite
def regions(draw: st.DrawFn, most_users: int = 4) -> Observation:
    """Every server linked to every base station and server directly; capacities that are often too small."""
    numbers = st.integers(1, 3)
    servers = tuple(
        server(
            f"s{i}",
            cpus=draw(numbers),
            power=draw(st.sampled_from([500.0, 1000.0, 3000.0])),
            memory=draw(numbers) * 1e9,
        )
        for i in range(draw(numbers))
    )
    stations = tuple(station(f"b{i}", draw(st.integers(0, 3))) for i in range(draw(numbers)))
    nodes = [*(one.name for one in stations), *(one.name for one in servers)]
    links = tuple(
        # all alike in time, so that a way over two links is never shorter than the direct one
        Link(a=one, b=other, bandwidth_bps=draw(st.sampled_from([1e7, 1e8, 1e9])), rtt_ms=draw(st.sampled_from([10.0,
        15.0, 19.0]))) for i, one in enumerate(nodes)
        for other in nodes[i + 1 :]
        if not (one.startswith("b") and other.startswith("b"))
    )  # fmt: skip
    users = tuple(
        user(
            f"u{i}",
            draw(st.sampled_from(["", *(one.name for one in stations)])),
            draw(st.sampled_from(["", *(one.name for one in servers)])),
            {one.name: draw(st.sampled_from([-90.0, -80.0, -72.0, -60.0])) for one in stations if draw(st.booleans())},
            demand=Amounts(
                cpus=draw(st.sampled_from([0.5, 1.0, 2.0])), memory_bytes=draw(st.sampled_from([0.5e9, 1e9]))
            ),
            tasks_per_s=draw(st.sampled_from([0.0, 0.5, 5.0])),
            processing_ms=draw(st.sampled_from([0.0, 10.0, 200.0])),
            task_bytes=draw(st.sampled_from([0.0, 1e4, 1e6])),
        )
        for i in range(draw(st.integers(0, most_users)))
    )
    speeds = tuple(
        Speed(server=one.name, checkpoint_fixed_ms=10, psi=1e-4, restore_fixed_ms=30, rho=1e-4, samples=3)
        for one in servers
    )
    return Observation(servers=servers, base_stations=stations, links=links, users=users, speeds=speeds)


def delay_ms(seen: Observation, one: User, b: str, s: str) -> float:
    """Eq. (4), one user, one base station, one server."""
    servers = {each.name: each for each in seen.servers}
    link = next(each for each in seen.links if {each.a, each.b} == {b, s})
    power = servers[one.server].computing_power if one.server else one.reference_power
    dbm = next(signal.then_dbm for signal in one.signals if signal.base_station == b)
    radio_bps = rate_bps("802.11n-20MHz", dbm)
    return (
        one.processing_ms * power / servers[s].computing_power
        + one.task_bytes * 8 / min(radio_bps, link.bandwidth_bps) * 1000
        + link.rtt_ms
    )


def downtime_ms(seen: Observation, one: User, b: str, s: str) -> float:
    """max(T_mig, T_ho) with eq. (5) in the form of a freeze."""
    servers = {each.name: each for each in seen.servers}
    speeds = {each.server: each for each in seen.speeds}
    moved = 0.0
    if one.server and s != one.server:
        link = next(each for each in seen.links if {each.a, each.b} == {one.server, s})
        here, there = speeds[one.server], speeds[s]
        moved = here.checkpoint_fixed_ms + here.psi * one.sizes.checkpoint_bytes / servers[one.server].computing_power
        # the hold's round trip, then two beside which the delta crosses
        moved += link.rtt_ms + max(2 * link.rtt_ms, one.sizes.delta_bytes * 8 / link.bandwidth_bps * 1000)
        moved += there.restore_fixed_ms + there.rho * one.sizes.checkpoint_bytes / servers[s].computing_power
    return max(moved, one.handover_ms if one.base_station and b != one.base_station else 0.0)


def profits(seen: Observation, horizon_s: float) -> list[dict[tuple[str, str], float]]:
    """For each user what each (b', s') that (3d) allows brings, less the constant that eq. (4) sets it against."""
    overfull = {
        one.name
        for one in seen.servers
        if not _fits(seen, one.name, [each for each in seen.users if each.server == one.name])
    }
    crowded = {b.name for b in seen.base_stations if sum(u.base_station == b.name for u in seen.users) > b.max_users}
    found = []
    for one in seen.users:
        dbm = {signal.base_station: signal.rssi_dbm for signal in one.signals if signal.rssi_dbm >= FLOOR}
        options = {}
        for b, s in product(dbm, (each.name for each in seen.servers)):
            stays = one.base_station in dbm and one.base_station not in crowded
            if stays and b != one.base_station and dbm[b] < dbm[one.base_station]:
                continue
            if s in overfull and s != one.server:
                continue
            options[b, s] = -delay_ms(seen, one, b, s) * one.tasks_per_s * horizon_s - downtime_ms(seen, one, b, s)
        found.append(options)
    return found


def best(seen: Observation, horizon_s: float) -> tuple[int, float]:
    """(fewest left, most profit with that few) by trying everything."""
    overfull = {
        one.name
        for one in seen.servers
        if not _fits(seen, one.name, [each for each in seen.users if each.server == one.name])
    }
    found = (len(seen.users) + 1, 0.0)
    options = profits(seen, horizon_s)
    for choice in product(*([None, *each] for each in options)):
        left = sum(each is None for each in choice)
        value = sum(each[at] for each, at in zip(options, choice, strict=True) if at is not None)
        if left > found[0] or (left == found[0] and value <= found[1]):
            continue
        good = all(sum(at is not None and at[0] == b.name for at in choice) <= b.max_users for b in seen.base_stations)
        for one in seen.servers:
            there = [u for u, at in zip(seen.users, choice, strict=True) if at is not None and at[1] == one.name]
            if one.name not in overfull:
                there += [u for u, at in zip(seen.users, choice, strict=True) if at is None and u.server == one.name]
            good = good and _fits(seen, one.name, there)
        if good:
            found = (left, value)
    return found


def reference(seen: Observation, horizon_s: float, left: set[str]) -> float:
    """What the constant parts of (4) add up to for those who are not left."""
    total = 0.0
    options = profits(seen, horizon_s)
    for one, mine in zip(seen.users, options, strict=True):
        if one.name in left:
            continue
        heard = {signal.base_station for signal in one.signals if signal.rssi_dbm >= FLOOR}
        if one.server and one.base_station in heard:
            constant = delay_ms(seen, one, one.base_station, one.server)
        else:
            fitting = [at for at in mine if _fits(seen, at[1], [one])
                       and next(b for b in seen.base_stations if b.name == at[0]).max_users > 0]  # fmt: skip
            constant = max(delay_ms(seen, one, *at) for at in fitting)
        total += constant * one.tasks_per_s * horizon_s
    return total


def _fits(seen: Observation, name: str, users: list[User]) -> bool:
    capacity = next(one for one in seen.servers if one.name == name).capacity.as_tuple()
    asked = [sum(each.demand.as_tuple()[part] for each in users) for part in range(4)]
    return all(need <= have + 1e-6 for need, have in zip(asked, capacity, strict=True))
