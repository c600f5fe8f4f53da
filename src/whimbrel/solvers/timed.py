"""An answer within a deadline, whatever happens: the Lagrangian search first, which has a feasible answer and a proven
bound early, then HiGHS on what it leaves open.

The search's prices tell how far behind each option is. HiGHS chooses among the best few of them, and among what the search
chose, so that it cannot do worse; a small problem it solves whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from whimbrel.model.errors import StepFailed
from whimbrel.plan.placement.lagrange import Step, steps_of, worth_at
from whimbrel.plan.placement.problem import Answer, Flags, Problem, Solve
from whimbrel.plan.placement.search import exchange
from whimbrel.solvers import highs

SMALL = 4000
"""So many options HiGHS takes whole."""
CORE = 2500
SEARCH_SHARE = 0.6
SAFE_SHARE = 0.85
"""HiGHS looks at the clock now and then only, and its answer has to be taken in."""
NAME = "timed"


def within(seconds: float, *, gap: float = 1e-3, clock: Callable[[], float] = time.monotonic) -> Solve:
    """A solver that answers within about `seconds`; earlier, once `gap` is proven."""

    def solve(problem: Problem) -> Answer:
        return _solve(problem, clock() + seconds, seconds, gap, clock)

    return solve


def _solve(problem: Problem, end_s: float, seconds: float, gap: float, clock: Callable[[], float]) -> Answer:
    small = int(problem.options.sum()) <= SMALL
    search_until_s = end_s - (1 - (SEARCH_SHARE / 2 if small else SEARCH_SHARE)) * seconds
    step: Step | None = None
    slowest_s, before_s = 0.0, clock()
    for step in steps_of(problem):  # noqa: B007
        now_s = clock()
        slowest_s, before_s = max(slowest_s, now_s - before_s), now_s
        if _proven(step.answer, gap) or now_s + slowest_s > search_until_s:
            break
    assert step is not None
    answer = step.answer
    left_s = end_s - clock() - (1 - SAFE_SHARE) * seconds
    if _proven(answer, gap) or left_s < 0.05 * seconds:
        return answer
    if small and answer.left:
        return _better(answer, _whole(problem, left_s, gap))
    allowed = problem.options if small else core(problem, step)
    found = highs.restricted(problem, allowed, most_left=answer.left, seconds=left_s, gap=gap / 2)
    bound = min(answer.bound, found.bound) if small else answer.bound
    if found.choice is None or problem.value(found.choice) <= answer.profit:
        return replace(answer, bound=max(bound, answer.profit))
    choice = found.choice
    if clock() + slowest_s < end_s:
        choice = exchange(problem, choice)
    profit = problem.value(choice)
    return Answer(choice, profit, max(bound, profit), answer.left_at_least, f"{answer.by}, {highs.NAME}")


def core(problem: Problem, step: Step) -> Flags:
    """[u, b, s]: the options that are least behind their user's best at the step's prices, and the step's own answer."""
    worth = worth_at(problem, step.prices)
    behind = worth.max(axis=(1, 2), keepdims=True) - worth
    counted = np.where(problem.options, behind, np.inf)
    most = np.partition(counted, CORE, axis=None)[CORE] if counted.size > CORE else np.inf
    allowed = (counted <= most) & problem.options
    placed = np.flatnonzero(step.answer.choice >= 0)
    allowed.reshape(len(allowed), -1)[placed, step.answer.choice[placed]] = True
    return allowed


def _whole(problem: Problem, seconds: float, gap: float) -> Answer | None:
    try:
        # in up to three parts, each of which may take the time
        return highs.solver(seconds=seconds / 3, gap=gap / 2)(problem)
    except StepFailed:
        return None


def _better(one: Answer, other: Answer | None) -> Answer:
    """The one that leaves fewer, then the one with more profit; what either has proven holds for it."""
    if other is None:
        return one
    at_least = max(one.left_at_least, other.left_at_least)
    first, second = sorted((one, other), key=lambda each: (each.left, -each.profit))
    # a bound for more that may be left holds for fewer, too
    bound = min(first.bound, second.bound)
    return Answer(first.choice, first.profit, max(bound, first.profit), at_least, first.by)


def _proven(answer: Answer, gap: float) -> bool:
    fewest = answer.left <= answer.left_at_least
    return fewest and answer.bound - answer.profit <= gap * abs(answer.profit) + 1e-3
