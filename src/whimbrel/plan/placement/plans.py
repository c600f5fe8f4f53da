"""From an answer to a plan: what each user is to do, what it brings, and why somebody is left where he is."""

from __future__ import annotations

import numpy as np

from whimbrel.model.edge import AMOUNT_NAMES
from whimbrel.model.placement import Assignment, Delay, Left, Plan
from whimbrel.plan.placement.problem import NOBODY, Answer, Indices, Problem


def plan_of(problem: Problem, answer: Answer, planner: str) -> Plan:
    observation = problem.observation
    assignments, left = [], []
    for number, user in enumerate(observation.users):
        option = int(answer.choice[number])
        if option == NOBODY:
            left.append(Left(user.name, why_left(problem, answer.choice, number)))
            continue
        b, s = divmod(option, problem.shape[2])
        assignments.append(
            Assignment(
                user=user.name,
                base_station=observation.base_stations[b].name,
                server=observation.servers[s].name,
                from_base_station=user.base_station,
                from_server=user.server,
                delay=Delay(
                    float(problem.processing_ms[number, s]),
                    float(problem.transmission_ms[number, b, s]),
                    float(problem.rtt_ms[b, s]),
                ),
                gain_ms=float(problem.gain[number, b, s]),
                downtime_ms=float(problem.cost[number, b, s]),
                pre_migration_ms=float(problem.pre_migration_ms[number, s]),
                migration_ms=float(problem.migration_ms[number, b, s]),
            )
        )
    return Plan(
        planner=planner,
        assignments=tuple(assignments),
        left=tuple(left),
        gain_ms=sum(one.gain_ms for one in assignments),
        cost_ms=sum(one.downtime_ms for one in assignments),
        profit_ms=answer.profit,
        bound_ms=answer.bound,
        left_at_least=answer.left_at_least,
        by=answer.by,
    )


def why_left(problem: Problem, choice: Indices, user: int) -> str:
    """One line: what he lacks, radio first, then a server that could carry him, then room beside the others."""
    observation, me = problem.observation, problem.observation.users[user]
    stay = f"stays on {me.server}" if me.server else "is not deployed"
    if not problem.heard[user].any():
        return f"hears no base station above its floor, {stay}"
    if not problem.options[user].any():
        short = problem.demand[user] > problem.capacity * (1 + 1e-9)
        if short.any(axis=1).all():
            return f"its service fits on no server, though it were empty ({_most(short)} is short), {stay}"
        if not problem.options[user].any() and (problem.places[problem.heard[user]] == 0).all():
            return f"every base station that it hears takes no users, {stay}"
        return f"no server that it can reach may take its service, {stay}"
    placed = choice >= 0
    stations, servers = np.divmod(choice[placed], problem.shape[2])
    there = np.bincount(stations, minlength=len(problem.places))
    mine = problem.options[user]
    open_stations = mine.any(axis=1) & (there < problem.places)
    if not open_stations.any():
        names = [observation.base_stations[b].name for b in np.flatnonzero(mine.any(axis=1))]
        return f"every base station that it hears is full ({_some(names)}), {stay}"
    free = problem.capacity.copy()
    np.subtract.at(free, servers, problem.demand[placed])
    counted = ~placed & problem.stays_counted
    counted[user] = False
    np.subtract.at(free, problem.home_server[counted], problem.demand[counted])
    candidates = np.flatnonzero(mine[open_stations].any(axis=0))
    short = problem.demand[user] > free[candidates] * (1 + 1e-9)
    return f"no server that it can reach has room ({_most(short)} is short on most), {stay}"


def _most(short: np.ndarray) -> str:
    return AMOUNT_NAMES[int(short.sum(axis=0).argmax())]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
