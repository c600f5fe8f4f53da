"""Ever better answers and an ever tighter bound, by Lagrangian relaxation of (3c) and (3e).

With a price on every amount of every server and on every place of every base station each user chooses for himself, and
what all choices and all prices come to is more than any feasible answer has: the bound. Prices follow the excess
(subgradient with Polyak's step, and momentum). From time to time a feasible answer is built along the prices.
Nothing here looks at a clock: whoever takes the steps decides when it is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from whimbrel.plan.placement.problem import NOBODY, Answer, Flags, Indices, Problem, Reals, flat
from whimbrel.plan.placement.search import construct, exchange, stay

BUILD_AT = (0, 25, 45)
BUILD_EVERY = 25
PATIENCE = 8
MOMENTUM = 0.7
STEPS = 250
NAME = "lagrange"


@dataclass(frozen=True, eq=False)
class Prices:
    """`amounts` [s, r] and `places` [b], each for the whole of the capacity."""

    amounts: Reals
    places: Reals


@dataclass(frozen=True, eq=False)
class Step:
    """After so many steps: the best answer so far, and the prices with the tightest bound."""

    number: int
    answer: Answer
    prices: Prices


def solve(problem: Problem, *, gap: float = 1e-3, steps: int = STEPS) -> Answer:
    """At most so many steps; fewer once `gap` is proven. The same answer for the same problem, wherever it runs."""
    answer = None
    for step in steps_of(problem):
        answer = step.answer
        if step.number >= steps or _proven(answer, gap):
            break
    assert answer is not None
    return answer


def _proven(answer: Answer, gap: float) -> bool:
    return answer.left <= answer.left_at_least and answer.bound - answer.profit <= gap * abs(answer.profit) + 1e-3


def worth_at(problem: Problem, prices: Prices) -> Reals:
    """[u, b, s]: the profits less what the prices charge."""
    amounts, places = _per_unit(problem, prices)
    worth: Reals = problem.profit - (problem.demand @ amounts.T)[:, None, :]
    worth -= places[None, :, None]
    return worth


def _per_unit(problem: Problem, prices: Prices) -> tuple[Reals, Reals]:
    """Of what there is nothing, nothing is sold: those options are gone already."""
    return (
        np.divide(prices.amounts, problem.capacity, out=np.zeros_like(prices.amounts), where=problem.capacity > 0),
        np.divide(prices.places, problem.places, out=np.zeros_like(prices.places), where=problem.places > 0),
    )


def surely_left(problem: Problem) -> int:
    """How many users certainly have to be left: those without an option, those beyond all places, and as many as
    have to go before all demand is no more than all capacity."""
    lost: Flags = np.asarray(~problem.options.any(axis=(1, 2)))
    heard = problem.options.any(axis=(0, 2))
    beyond = len(lost) - int(problem.places[heard].sum())
    most = max(int(lost.sum()), beyond)
    over = problem.demand.sum(axis=0) - problem.capacity.sum(axis=0) * (1 + 1e-9)
    # only who runs nowhere yet, or is of an excess, takes nothing when he is left
    spared = -np.sort(-problem.demand[~problem.stays_counted], axis=0)
    for part in np.flatnonzero(over > 0):
        most = max(most, int(np.searchsorted(np.cumsum(spared[:, part]), over[part])) + 1)
    return min(most, len(lost))


def steps_of(problem: Problem) -> Iterator[Step]:
    """Endless, unless the prices have nothing left to change; the first step has an answer already."""
    at_least = surely_left(problem)
    if not problem.shape[0]:
        nothing = Prices(np.zeros_like(problem.capacity), np.zeros(len(problem.places)))
        yield Step(0, Answer(np.zeros(0, np.intp), 0.0, 0.0, 0, NAME), nothing)
        return
    best = stay(problem)
    profit, left = problem.value(best), int((best < 0).sum())
    prices = tightest = momentum = Prices(np.zeros_like(problem.capacity), np.zeros(len(problem.places)))
    bound, pull, patience = np.inf, 1.0, 0
    packed = pack(problem, problem.options)
    number = 0
    while True:
        value, chosen, behind = _relaxed(problem, packed, prices, left)
        if value < bound - 1e-7 * abs(value):
            bound, tightest, patience = value, prices, 0
        else:
            patience += 1
            if patience >= PATIENCE:
                pull, patience = pull * 0.6, 0
        if number in BUILD_AT[1:] or (number > BUILD_AT[-1] and number % BUILD_EVERY == 0):
            found = construct(problem, worth_at(problem, prices))
            fewer = left - int((found < 0).sum())
            if fewer >= 0:
                found = exchange(problem, found)
            if fewer > 0 or (fewer == 0 and problem.value(found) > profit):
                # a bound for more that may be left holds for fewer, too
                best, profit, left = found, problem.value(found), left - fewer
            if left == 0:
                # an option so far behind is in no better answer: it need not be looked at again
                packed = packed.without(behind > value - profit + 1e-6 * abs(value))
        yield Step(number, Answer(best, profit, max(bound, profit), at_least, NAME), tightest)
        number += 1
        excess = _excess(problem, chosen)
        momentum = Prices(excess.amounts + MOMENTUM * momentum.amounts, excess.places + MOMENTUM * momentum.places)
        along = Prices(_upward(prices.amounts, momentum.amounts), _upward(prices.places, momentum.places))
        length = float((along.amounts**2).sum() + (along.places**2).sum())
        if length <= 1e-18:
            return
        stride = pull * max(value - profit, 1e-9) / length
        prices = Prices(
            np.maximum(0.0, prices.amounts + stride * along.amounts),
            np.maximum(0.0, prices.places + stride * along.places),
        )


@dataclass(frozen=True, eq=False)
class Packed:
    """The options that count, [u, k]: base station, server and profit; -inf where a user has fewer."""

    stations: Indices
    servers: Indices
    profit: Reals

    def without(self, drop: Flags) -> Packed:
        """Less some options; the array gets narrower once the longest row does."""
        profit = np.where(drop, -np.inf, self.profit)
        order = np.argsort(-profit, axis=1, kind="stable")[
            :, : max(1, int(np.isfinite(profit).sum(axis=1).max(initial=0)))
        ]
        return Packed(
            np.take_along_axis(self.stations, order, 1),
            np.take_along_axis(self.servers, order, 1),
            np.take_along_axis(profit, order, 1),
        )


def pack(problem: Problem, options: Flags) -> Packed:
    users, _, width = problem.shape
    stations, servers = np.divmod(np.arange(problem.profit[0].size), width)
    whole = Packed(
        np.broadcast_to(stations, (users, len(stations))),
        np.broadcast_to(servers, (users, len(servers))),
        flat(np.where(options, problem.profit, -np.inf)),
    )
    return whole.without(np.zeros_like(whole.profit, dtype=np.bool_))


def _upward(price: Reals, momentum: Reals) -> Reals:
    """A price of 0 cannot fall."""
    return np.where((price <= 0) & (momentum < 0), 0.0, momentum)


def _relaxed(problem: Problem, packed: Packed, prices: Prices, left: int) -> tuple[float, Indices, Reals]:
    """What everybody's own choice and all prices come to, when `left` users may be left: at least what any answer has
    that leaves no more; the choices; and how far behind the user's best each option [u, k] is."""
    amounts, places = _per_unit(problem, prices)
    worth = packed.profit - np.take_along_axis(problem.demand @ amounts.T, packed.servers, 1)
    worth -= places[packed.stations]
    best = worth.argmax(axis=1)
    everyone = np.arange(len(best))
    own = worth[everyone, best]
    chosen = packed.stations[everyone, best] * problem.shape[2] + packed.servers[everyone, best]
    # a user who is left pays for what his container goes on taking
    pays = np.where(problem.stays_counted, (problem.demand * amounts[problem.home_server]).sum(axis=1), 0.0)
    spared = -own - pays
    out = np.argsort(-spared, kind="stable")[:left]
    out = out[spared[out] > 0]
    chosen[out] = NOBODY
    kept = chosen >= 0
    value = float(own[kept].sum() - pays[out].sum() + prices.amounts.sum() + prices.places[problem.places > 0].sum())
    with np.errstate(invalid="ignore"):
        behind = own[:, None] - worth
    return value, chosen, np.where(np.isfinite(packed.profit), behind, np.inf)


def _excess(problem: Problem, chosen: Indices) -> Prices:
    """Asked for beyond what there is, as a share of the whole; where nothing is, nothing is asked."""
    users = np.flatnonzero(chosen >= 0)
    stations, servers = np.divmod(chosen[users], problem.shape[2])
    out = np.flatnonzero((chosen < 0) & problem.stays_counted)
    servers, users = np.concatenate((servers, problem.home_server[out])), np.concatenate((users, out))
    asked = np.stack([np.bincount(servers, part[users], problem.shape[2]) for part in problem.demand.T], axis=1)
    over = asked - problem.capacity
    amounts = np.divide(over, problem.capacity, out=np.zeros_like(over), where=problem.capacity > 0)
    there = np.bincount(stations, minlength=len(problem.places)) - problem.places
    return Prices(amounts, np.divide(there, problem.places, out=np.zeros(len(there)), where=problem.places > 0))
