"""Any server, when the base station changes. The policy's seed, the moment and the user's name draw it: the same
observation always gives the same plan."""

from random import Random

import numpy as np

from whimbrel.model.edge import Observation
from whimbrel.model.placement import Plan, Policy
from whimbrel.plan.placement.problem import Problem, Reals, Solve
from whimbrel.plan.planners.interface import Planner, by_rank


def _rank(problem: Problem, user: int, station: int) -> Reals:
    observation = problem.observation
    seed = f"{problem.policy.seed} {observation.at_s!r} {observation.users[user].name}"
    order = list(range(len(observation.servers)))
    Random(seed).shuffle(order)
    return np.array(order, np.float64)


def _make(observation: Observation, policy: Policy, solve: Solve) -> Plan:
    return by_rank(observation, policy, _rank, PLANNER.name)


PLANNER = Planner(
    name="random",
    summary="any server that has room, when the base station changes",
    source="coordinated V-A (2)",
    make=_make,
)
