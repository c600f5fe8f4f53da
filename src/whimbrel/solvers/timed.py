"""An answer within a deadline, whatever happens: the Lagrangian search first, which has a feasible answer and a proven
bound early, then HiGHS on what it leaves open.

The search's prices tell how far behind each option is. HiGHS chooses among the best few of them, and among what the
search chose, so that it cannot do worse; a small problem it solves whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from whimbrel.model.errors import StepFailed
from whimbrel.plan.placement.lagrange import Prices, Step, steps_of, worth_at
from whimbrel.plan.placement.problem import Answer, Flags, Indices, Problem, Solve
from whimbrel.plan.placement.search import exchange
from whimbrel.solvers import highs

SMALL = 4000
"""So many options HiGHS takes whole in the end."""
EXTRA = 150
"""HiGHS gets one option for each user, and so many more: with many more it finds less in a second."""
SEARCH_SHARE = 0.6
SAFE_SHARE = 0.85
"""HiGHS looks at the clock now and then only, and its answer has to be taken in."""
NAME = "timed"


def within(
    seconds: float,
    *,
    gap: float = 1e-3,
    clock: Callable[[], float] = time.monotonic,
    began_s: float | None = None,
) -> Solve:
    """A solver that answers within about `seconds`; earlier, once `gap` is proven. They count from `began_s` of the
    clock (None: from when it gets the problem): making a problem of an observation takes its time, too."""

    def solve(problem: Problem) -> Answer:
        now_s = clock()
        end_s = (now_s if began_s is None else began_s) + seconds
        return _solve(problem, end_s, max(0.0, end_s - now_s), gap, clock)

    return solve


def _solve(problem: Problem, end_s: float, seconds: float, gap: float, clock: Callable[[], float]) -> Answer:
    small = int(problem.options.sum()) <= SMALL
    search_until_s = end_s - (1 - (SEARCH_SHARE / 2 if small else SEARCH_SHARE)) * seconds
    step: Step | None = None
    slowest_s, before_s = 0.0, clock()
    for step in steps_of(problem):
        now_s = clock()
        slowest_s, before_s = max(slowest_s, now_s - before_s), now_s
        if proven(step.answer, gap) or now_s + slowest_s > search_until_s:
            break
    assert step is not None
    answer = step.answer
    # what was slow before is slow again: a machine under load keeps its deadline, too
    stop_s = end_s - max((1 - SAFE_SHARE) * seconds, slowest_s)
    if answer.left and small and not proven(answer, gap) and clock() < stop_s:
        answer = better(answer, _whole(problem, stop_s - clock(), gap))
    # ever more options, the last time all of a small problem's; what was found before is always among them
    for extra, share in ((EXTRA, 0.5), (problem.options.size if small else 2 * EXTRA, 1.0)):
        began_s = clock()
        left_s = (stop_s - began_s) * share
        if proven(answer, gap) or left_s < 0.05 * seconds:
            break
        allowed = core(problem, step.prices, answer.choice, extra)
        found = highs.restricted(problem, allowed, most_left=answer.left, seconds=left_s, gap=gap / 2)
        if bool((allowed == problem.options).all()):
            answer = replace(answer, bound=max(answer.profit, min(answer.bound, found.bound)))
        over_s = clock() - (began_s + left_s)
        stop_s -= max(0.0, over_s)  # by so much HiGHS was late, and may be again
        answer = _polished(problem, answer, found.choice, exchanges=clock() + slowest_s < end_s)
    return answer


def _polished(problem: Problem, answer: Answer, choice: Indices | None, *, exchanges: bool) -> Answer:
    """The answer, or what HiGHS found if that is better after exchanges."""
    if choice is None:
        return answer
    choice = exchange(problem, choice) if exchanges else choice
    profit = problem.value(choice)
    if profit <= answer.profit or (choice < 0).sum() > answer.left:
        return answer
    return Answer(choice, profit, max(answer.bound, profit), answer.left_at_least, NAME)


def core(problem: Problem, prices: Prices, choice: Indices, extra: int) -> Flags:
    """[u, b, s]: each user's best option at these prices, so many more that are least behind, and the given choice."""
    worth = worth_at(problem, prices)
    behind = worth.max(axis=(1, 2), keepdims=True) - worth
    counted = np.where(problem.options, behind, np.inf)
    count = problem.shape[0] + extra
    most = np.partition(counted, count, axis=None)[count] if counted.size > count else np.inf
    allowed = (counted <= most) & problem.options
    placed = np.flatnonzero(choice >= 0)
    stations, servers = np.divmod(choice[placed], problem.shape[2])
    allowed[placed, stations, servers] = True
    return allowed


def _whole(problem: Problem, seconds: float, gap: float) -> Answer | None:
    try:
        return highs.solver(seconds=seconds, gap=gap / 2)(problem)
    except StepFailed:
        return None


def better(one: Answer, other: Answer | None) -> Answer:
    """The one that leaves fewer, then the one with more profit; what either has proven holds for it."""
    if other is None:
        return one
    at_least = max(one.left_at_least, other.left_at_least)
    first, second = sorted((one, other), key=lambda each: (each.left, -each.profit))
    # a bound for more that may be left holds for fewer, too
    bound = min(first.bound, second.bound)
    return Answer(first.choice, first.profit, max(bound, first.profit), at_least, first.by)


def proven(answer: Answer, gap: float) -> bool:
    fewest = answer.left <= answer.left_at_least
    return fewest and answer.bound - answer.profit <= gap * abs(answer.profit) + 1e-3
