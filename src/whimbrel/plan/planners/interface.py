"""What a planner is: an observation in, a plan out, nothing else touched. And what the simple ones share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from whimbrel.model.edge import Observation
from whimbrel.model.placement import Plan, Policy
from whimbrel.plan.placement import lagrange
from whimbrel.plan.placement.lagrange import surely_left
from whimbrel.plan.placement.plans import plan_of
from whimbrel.plan.placement.problem import NOBODY, Answer, Indices, Problem, Reals, Solve, formulate

Make = Callable[[Observation, Policy, Solve], Plan]


@dataclass(frozen=True)
class Planner:
    """`make` turns an observation into a plan; a planner that optimises nothing leaves the solver it is given alone.
    `source`: where it is described. `follows_handover`: to be asked when the radio hands a user over, not before."""

    name: str
    summary: str
    source: str
    make: Make
    follows_handover: bool = True

    def plan(self, observation: Observation, policy: Policy | None = None, solve: Solve = lagrange.solve) -> Plan:
        """`solve` is pure unless told otherwise; `whimbrel.solvers` has one that keeps a deadline. Raises BadInput."""
        return self.make(observation, policy or Policy(), solve)


Rank = Callable[[Problem, int, int], Reals]
"""(problem, user, base station) -> the servers' ranks for this user: the least first, infinite for never."""


def by_rank(observation: Observation, policy: Policy, rank: Rank, name: str) -> Plan:
    """What the paper's three baselines do (V-A): the base station that is heard best, with hysteresis; and when that
    changes, or nothing runs yet, the server that ranks first and has room. Else the service stays where it is."""
    problem = formulate(observation, policy)
    choice = np.full(len(observation.users), NOBODY, np.intp)
    free, places = problem.capacity * (1 + 1e-9), problem.places.copy()
    counted = problem.stays_counted
    # everybody's container is where it is until it is moved
    np.subtract.at(free, problem.home_server[counted], problem.demand[counted])
    for user in _those_who_stay_first(problem):
        home = int(problem.home_server[user])
        for station in _stations(problem, user, places):
            stays = station == problem.home_station[user] and home != NOBODY
            ranks = np.where(problem.options[user, station], rank(problem, user, station), np.inf)
            if counted[user]:
                free[home] += problem.demand[user]
            fits = (problem.demand[user] <= free).all(axis=1)
            if home != NOBODY and not counted[user]:
                fits[home] = True
            ranks = np.where(fits, ranks, np.inf)
            server = int(ranks.argmin())
            if stays and problem.options[user, station, home]:
                server = home
            elif not np.isfinite(ranks[server]):
                # nobody who would be taken: it stays where it is, if it still can be reached
                server = home if home != NOBODY and problem.options[user, station, home] else NOBODY
            if server == NOBODY:
                if counted[user]:
                    free[home] -= problem.demand[user]
                continue
            if counted[user] or server != home:
                free[server] -= problem.demand[user]
            places[station] -= 1
            choice[user] = station * problem.shape[2] + server
            break
    answer = Answer(choice, problem.value(choice), float("inf"), surely_left(problem), name)
    return plan_of(problem, answer, name)


def _those_who_stay_first(problem: Problem) -> Indices:
    """Who keeps his base station keeps his place there, whoever comes."""
    users = np.arange(problem.shape[0])
    keeps = (problem.home_station >= 0) & problem.options[users, problem.home_station].any(axis=1)
    return np.concatenate((users[keeps], users[~keeps]))


def _stations(problem: Problem, user: int, places: Indices) -> list[int]:
    """Those with a place for him, the one heard best first; the options keep the hysteresis."""
    loud = {signal.base_station: signal.then_dbm for signal in problem.observation.users[user].signals}
    stations = problem.observation.base_stations
    possible = np.flatnonzero(problem.options[user].any(axis=1) & (places > 0))
    return sorted((int(b) for b in possible), key=lambda b: -loud[stations[b].name])
