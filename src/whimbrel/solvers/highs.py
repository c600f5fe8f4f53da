"""The exact problem by HiGHS, as SciPy brings it: one dependency less than `highspy`, and the same solver (measured:
the same answers in the same time). It has no warm start there; `timed` does not need one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from whimbrel.model.errors import StepFailed
from whimbrel.plan.placement.problem import Answer, Flags, Indices, Problem
from whimbrel.solvers.matrix import Program, answer, program

NAME = "highs"
INFEASIBLE = 2
LEAST_S = 0.01


@dataclass(frozen=True, eq=False)
class Outcome:
    """`choice` None: no solution was found. `infeasible`: proven that there is none. `bound`: no solution has more
    than this (of the profit, or for a count: no fewer are left)."""

    choice: Indices | None
    infeasible: bool
    bound: float


Run = Callable[[Program, float, float], tuple[np.ndarray | None, bool, float]]
"""(program, seconds, relative gap) -> x or None, whether it is infeasible, a lower bound of the minimum."""


def run(made: Program, seconds: float, gap: float) -> tuple[np.ndarray | None, bool, float]:
    """HiGHS for at most so long (it looks at the clock itself, not very often)."""
    found = milp(
        made.cost,
        constraints=LinearConstraint(made.matrix, made.lower, made.upper),
        integrality=np.ones(len(made.cost)),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": gap, "disp": False},
    )
    bound = found.mip_dual_bound
    return found.x, found.status == INFEASIBLE, -np.inf if bound is None else float(bound)


def restricted(problem: Problem, allowed: Flags, *, most_left: int | None, seconds: float, gap: float) -> Outcome:
    """The best answer out of some options."""
    made = program(problem, allowed, most_left=most_left)
    x, infeasible, bound = run(made, seconds, gap)
    return Outcome(None if x is None else made.choice(x, problem.shape[0]), infeasible, -bound)


def solver(
    *,
    seconds: float = 60.0,
    gap: float = 1e-4,
    by: Run = run,
    name: str = NAME,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Problem], Answer]:
    """The whole problem: everybody placed if that can be; else as few left as possible, and with that few the most
    profit. `seconds` for these parts together. Raises StepFailed when the time is up and there is no answer."""

    def solve(problem: Problem) -> Answer:
        end_s = clock() + seconds

        def left_s() -> float:
            return max(LEAST_S, end_s - clock())

        everyone = problem.shape[0]
        if not everyone:
            return answer(problem, np.zeros(0, np.intp), 0.0, 0, name)
        most_left: int = 0
        if problem.options.any(axis=(1, 2)).all():
            made = program(problem, problem.options, most_left=0)
            x, infeasible, bound = by(made, left_s(), gap)
            if x is not None:
                return answer(problem, made.choice(x, everyone), -bound, 0, name)
            if not infeasible:
                raise StepFailed(
                    f"{name} found no answer within {seconds:g} s: give it more time, or use the timed solver"
                )
        made = program(problem, problem.options, most_left=None, count_left=True)
        # half of what is left: the profit is to have its part, too
        x, _, bound = by(made, left_s() / 2, 0.0)
        if x is None:
            raise StepFailed(f"{name} found no answer within {seconds:g} s: give it more time, or use the timed solver")
        fewest = made.choice(x, everyone)
        most_left = int((fewest < 0).sum())
        at_least = int(np.ceil(bound - 1e-6))
        made = program(problem, problem.options, most_left=most_left)
        x, _, bound = by(made, left_s(), gap)
        choice = fewest if x is None else made.choice(x, everyone)
        return answer(problem, choice, -bound, max(0, at_least), name)

    return solve
