"""Base stations and servers for all users together, so that the delay they are spared exceeds what the moves cost
most."""

from whimbrel.model.edge import Observation
from whimbrel.model.placement import Plan, Policy
from whimbrel.plan.placement.plans import plan_of
from whimbrel.plan.placement.problem import Solve, formulate
from whimbrel.plan.planners.interface import Planner


def _make(observation: Observation, policy: Policy, solve: Solve) -> Plan:
    problem = formulate(observation, policy)
    return plan_of(problem, solve(problem), PLANNER.name)


PLANNER = Planner(
    name="orchestrated",
    summary="base station and server for all users together: most delay spared for least downtime",
    source="coordinated IV-A, (1)-(3e)",
    make=_make,
    follows_handover=False,
)
