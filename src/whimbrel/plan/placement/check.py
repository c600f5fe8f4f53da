"""Holds any plan against (3b)-(3e), from the observation alone: nothing of the problem's arrays or of a solver is
used."""

from __future__ import annotations

from collections import defaultdict

from whimbrel.model.edge import AMOUNT_NAMES, Observation
from whimbrel.model.placement import Plan
from whimbrel.plan.rates import floor_dbm

ROOM = 1e-6


def violations(observation: Observation, plan: Plan) -> tuple[str, ...]:
    """A line for each constraint that the plan breaks; none for a plan that may be carried out.

    Who is left goes on taking his share of the server where he runs. A server that has less than its own containers
    take already may stay so, if nobody comes and no more is taken than before.
    """
    found: list[str] = []
    users = {user.name: user for user in observation.users}
    servers = {server.name: server for server in observation.servers}
    stations = {station.name: station for station in observation.base_stations}

    # (3b): one server and one base station for each
    times: defaultdict[str, int] = defaultdict(int)
    for name in (*(one.user for one in plan.assignments), *(one.user for one in plan.left)):
        times[name] += 1
    found += [f"{name} is planned for, but is no user" for name in times if name not in users]
    found += [f"{name} is planned for {times[name]} times (3b)" for name in users if times[name] != 1]

    taken: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(AMOUNT_NAMES))
    before: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(AMOUNT_NAMES))
    came: set[str] = set()
    attached: defaultdict[str, int] = defaultdict(int)
    for user in observation.users:
        if user.server:
            before[user.server] = [sum(pair) for pair in zip(before[user.server], user.demand.as_tuple(), strict=True)]
    where = [(one.user, one.server) for one in plan.assignments]
    where += [(one.user, users[one.user].server) for one in plan.left if one.user in users and users[one.user].server]
    for name, server in where:
        if server not in servers:
            found.append(f"{name} is planned for {server}, which is no server")
        elif name in users:
            taken[server] = [sum(pair) for pair in zip(taken[server], users[name].demand.as_tuple(), strict=True)]
            if users[name].server != server:
                came.add(server)

    # (3c): what a server has
    for name, amounts in taken.items():
        for what, need, was, have in zip(
            AMOUNT_NAMES, amounts, before[name], servers[name].capacity.as_tuple(), strict=True
        ):
            stays_full = name not in came and need <= was * (1 + ROOM)
            if need > have * (1 + ROOM) and not stays_full:
                found.append(f"server {name} has {have:g} of {what}, {need:g} are planned (3c)")

    for one in plan.assignments:
        if one.base_station not in stations:
            found.append(f"{one.user} is planned for {one.base_station}, which is no base station")
            continue
        attached[one.base_station] += 1
        # (3d): heard now and then
        station = stations[one.base_station]
        floor = floor_dbm(station.technology) if station.floor_dbm is None else station.floor_dbm
        signals = [one_signal for one_signal in users[one.user].signals if one_signal.base_station == station.name]
        if not signals:
            found.append(f"{one.user} does not hear {station.name} (3d)")
        elif signals[0].rssi_dbm < floor or signals[0].then_dbm < floor:
            found.append(f"{one.user} hears {station.name} below {floor:g} dBm (3d)")

    # (3e): users of a base station
    for name, count in attached.items():
        if count > stations[name].max_users:
            found.append(f"base station {name} takes {stations[name].max_users} users, {count} are planned (3e)")
    return tuple(found)
