"""(3a)-(3e) as a mixed-integer program: a column for each option, and one for each user who may be left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from whimbrel.plan.placement.problem import NOBODY, Answer, Flags, Indices, Problem, Reals


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise `cost` x over binary x with `lower` <= `matrix` x <= `upper`. Columns: first one for each option
    (`users`, `options`), then one for each user who may be left (`leavers`)."""

    cost: Reals
    matrix: sparse.csc_array
    lower: Reals
    upper: Reals
    users: Indices
    options: Indices
    leavers: Indices

    def choice(self, x: Reals, how_many: int) -> Indices:
        """What a solution says of each user: b * |S| + s, or -1."""
        chosen = np.full(how_many, NOBODY, np.intp)
        taken = np.flatnonzero(x[: len(self.users)] > 0.5)
        chosen[self.users[taken]] = self.options[taken]
        return chosen


def program(problem: Problem, allowed: Flags, *, most_left: int | None, count_left: bool = False) -> Program:
    """`allowed` [u, b, s]: the options to choose from. `most_left`: so many users may be left (None: any number; 0:
    nobody). `count_left`: minimise how many are left, instead of maximising the profit."""
    users, stations, servers = np.nonzero(allowed & problem.options)
    how_many, width, amounts = problem.shape[0], problem.shape[2], problem.capacity.shape[1]
    # the paper's "= 1": without leavers nobody can be left
    leavers = np.arange(how_many) if most_left != 0 else np.zeros(0, np.intp)
    count = len(users) + len(leavers)
    columns = np.arange(len(users))
    left_columns = len(users) + np.arange(len(leavers))
    first_amount, first_place = how_many, how_many + width * amounts
    rows = [users, first_place + stations, leavers]
    cols = [columns, columns, left_columns]
    vals = [np.ones(len(users)), np.ones(len(users)), np.ones(len(leavers))]
    # each amount as a share of the server's: one scale for bytes and CPUs
    scale = np.where(problem.capacity > 0, problem.capacity, 1.0)
    staying = leavers[problem.stays_counted[leavers]]
    staying_columns = left_columns[problem.stays_counted[leavers]]
    for part in range(amounts):
        rows += [first_amount + servers * amounts + part, first_amount + problem.home_server[staying] * amounts + part]
        cols += [columns, staying_columns]
        vals += [
            problem.demand[users, part] / scale[servers, part],
            problem.demand[staying, part] / scale[problem.home_server[staying], part],
        ]
    last = first_place + len(problem.places)
    rows.append(np.full(len(leavers), last))
    cols.append(left_columns)
    vals.append(np.ones(len(leavers)))
    upper = np.concatenate(
        (
            np.ones(how_many),
            (problem.capacity / scale).ravel() * (1 + 1e-9),
            problem.places.astype(np.float64),
            [np.inf if most_left is None else most_left],
        )
    )
    lower = np.full(len(upper), -np.inf)
    lower[:how_many] = 1.0
    profit = np.concatenate((problem.profit[users, stations, servers], np.zeros(len(leavers))))
    counted = np.concatenate((np.zeros(len(users)), np.ones(len(leavers))))
    return Program(
        cost=counted if count_left else -profit,
        matrix=sparse.csc_array(
            (np.concatenate(vals), (np.concatenate(rows), np.concatenate(cols))), shape=(last + 1, count)
        ),
        lower=lower,
        upper=upper,
        users=users,
        options=stations * width + servers,
        leavers=leavers,
    )


def answer(problem: Problem, choice: Indices, bound: float, left_at_least: int, by: str) -> Answer:
    profit = problem.value(choice)
    return Answer(choice, profit, max(bound, profit), left_at_least, by)
