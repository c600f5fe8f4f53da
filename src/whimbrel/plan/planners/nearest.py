"""The server nearest to the user's base station, when the base station changes."""

from whimbrel.model.edge import Observation
from whimbrel.model.placement import Plan, Policy
from whimbrel.plan.placement.problem import Problem, Reals, Solve
from whimbrel.plan.planners.interface import Planner, by_rank


def _rank(problem: Problem, user: int, station: int) -> Reals:
    """By round-trip time; of equals the first in the region's order."""
    ranks: Reals = problem.rtt_ms[station]
    return ranks


def _make(observation: Observation, policy: Policy, solve: Solve) -> Plan:
    return by_rank(observation, policy, _rank, PLANNER.name)


PLANNER = Planner(
    name="nearest",
    summary="the nearest server that has room, when the base station changes",
    source="coordinated V-A (3)",
    make=_make,
)
