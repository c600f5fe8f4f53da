"""Always the cloud, wherever the user is."""

import numpy as np

from whimbrel.model.edge import Observation
from whimbrel.model.placement import Plan, Policy
from whimbrel.plan.placement.problem import Problem, Reals, Solve
from whimbrel.plan.planners.interface import Planner, by_rank


def _rank(problem: Problem, user: int, station: int) -> Reals:
    """The cloud's servers, the nearer first; an edge server only where no cloud has room."""
    edges = np.array([0.0 if server.cloud else 1e9 for server in problem.observation.servers])
    ranks: Reals = edges + problem.rtt_ms[station]
    return ranks


def _make(observation: Observation, policy: Policy, solve: Solve) -> Plan:
    return by_rank(observation, policy, _rank, PLANNER.name)


PLANNER = Planner(
    name="cloud",
    summary="always the cloud, wherever the user is",
    source="coordinated V-A (1)",
    make=_make,
)
