"""The solver that an operator has chosen, within a deadline whatever happens: the exact ones have a part of the time to
solve the whole problem, and `timed` has the rest."""

from __future__ import annotations

import time
from collections.abc import Callable

from whimbrel.model.errors import BadInput, Refused, StepFailed
from whimbrel.plan.placement.problem import Answer, Problem, Solve
from whimbrel.solvers import cbc, highs, timed

EXACT_SHARE = 0.6
MOST_OPTIONS = 50_000
"""With more the exact solvers find nothing in seconds, and HiGHS may not look at the clock for long."""
GAP = 1e-4


def names() -> tuple[str, ...]:
    return timed.NAME, highs.NAME, cbc.NAME


def check(name: str) -> None:
    """Raises BadInput for one that there is not, or that is not on this machine."""
    if name not in names():
        raise BadInput(f"there is no solver {name!r}: choose from {', '.join(names())}")
    if name == cbc.NAME and not cbc.installed():
        raise BadInput('solver = "cbc": there is no program `cbc` on this machine: install coinor-cbc')


def within(
    name: str, seconds: float, *, clock: Callable[[], float] = time.monotonic, began_s: float | None = None
) -> Solve:
    """A solver of this name that answers within about `seconds`, counted as by `timed.within`. Where the exact one has
    no answer by then, or none that leaves as few users, `timed` gives it: `Answer.by` says whose it is."""
    begun_s = clock() if began_s is None else began_s
    fallback = timed.within(seconds, clock=clock, began_s=begun_s)
    if name == timed.NAME:
        return fallback
    make = cbc.solver if name == cbc.NAME else highs.solver

    def solve(problem: Problem) -> Answer:
        left_s = begun_s + seconds * EXACT_SHARE - clock()
        answer = None
        if left_s > 0 and int(problem.options.sum()) <= MOST_OPTIONS:
            try:
                answer = make(seconds=left_s, gap=GAP)(problem)
            except (StepFailed, Refused):  # no answer in this time, or no such program any more
                answer = None
        if answer is not None and timed.proven(answer, 2 * GAP):
            return answer
        return timed.better(fallback(problem), answer)

    return solve
