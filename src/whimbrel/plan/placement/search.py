"""Feasible answers: placing one user after the other, making room for who found none, moving single users to where
more is gained. Deterministic. Whatever the multipliers that guide it say, what comes out keeps (3b)-(3e)."""

from __future__ import annotations

from collections import deque

import numpy as np

from whimbrel.plan.placement.problem import NOBODY, Flags, Indices, Problem, Reals, flat

ROOM = 1e-9
"""Relative: sums of decimal fractions come out a little above."""
PUSHES = 300
"""How often somebody may be moved aside to make room, in one answer."""
FEW = 0.04
"""Room is made for at most this share of the users: where more have none, the prices are still far off."""
WISHES = 3
WISHERS = 250
"""In an exchange so many users are looked at, and of each so many better options."""


class State:
    """An answer in the making. `free` [s, r] and `open` [b] are what is left of capacity and places."""

    def __init__(self, problem: Problem, left: Flags) -> None:
        self.problem = problem
        self.choice = np.full(len(left), NOBODY, np.intp)
        self.left = left
        self.free = problem.capacity * (1 + ROOM)
        self.open = problem.places.copy()
        counted = left & problem.stays_counted
        np.subtract.at(self.free, problem.home_server[counted], problem.demand[counted])

    def put(self, user: int, option: int) -> None:
        station, server = divmod(option, self.problem.shape[2])
        self.choice[user] = option
        self.free[server] -= self.problem.demand[user]
        self.open[station] -= 1

    def take(self, user: int) -> None:
        station, server = divmod(int(self.choice[user]), self.problem.shape[2])
        self.choice[user] = NOBODY
        self.free[server] += self.problem.demand[user]
        self.open[station] += 1

    def room(self, user: int) -> Flags:
        """[b, s]: where the user would fit now."""
        fits = (self.problem.demand[user] <= self.free).all(axis=1)
        possible: Flags = np.logical_and.outer(self.open > 0, fits)
        return possible


def construct(problem: Problem, worth: Reals) -> Indices:
    """A feasible answer, guided by `worth` [u, b, s] (profits less what the multipliers charge).

    Who finds no place is left, his share stays reserved, and the others are placed anew; in the end everybody is left,
    which is feasible, since it is how things are.
    """
    left: Flags = np.asarray(~problem.options.any(axis=(1, 2)))
    while True:
        state = State(problem, left)
        homeless = _fill(state, worth)
        if len(homeless) <= max(3, FEW * len(left)):
            homeless = _push(state, worth, homeless)
        if not homeless:
            return improve(problem, state)
        left = left.copy()
        left[homeless] = True


def stay(problem: Problem) -> Indices:
    """A feasible answer in which whoever can stays where he is, and the others go where there is room; then single
    moves. Each one's share of his server is his until he has another place."""
    everybody = np.ones(problem.shape[0], np.bool_)
    state = State(problem, everybody)
    worth = flat(problem.profit)
    at_home = np.arange(problem.shape[2]) == problem.home_server[:, None]
    keeps = (problem.options & at_home[:, None, :]).any(axis=(1, 2))
    for user in np.concatenate((np.flatnonzero(keeps), np.flatnonzero(~keeps & problem.options.any(axis=(1, 2))))):
        _let_go(state, int(user), 1.0)
        possible = state.room(user)
        home = possible & at_home[user] & problem.options[user]
        possible = home if home.any() else possible
        option = int(np.where(possible.ravel(), worth[user], -np.inf).argmax())
        if possible.flat[option] and np.isfinite(worth[user, option]):
            state.put(int(user), option)
            state.left[user] = False
        else:
            _let_go(state, int(user), -1.0)
    return improve(problem, state)


def _let_go(state: State, user: int, sign: float) -> None:
    """The share of his server that a user holds while he is left: no longer (1), or again (-1)."""
    if state.problem.stays_counted[user]:
        state.free[state.problem.home_server[user]] += sign * state.problem.demand[user]


def _fill(state: State, worth: Reals) -> list[int]:
    """Everybody at his best option, in the order of what a second choice would cost; then, one by one, those for
    whom that was full. Returns who found nothing."""
    problem = state.problem
    users = np.flatnonzero(~state.left)
    if not len(users):
        return []
    rows = flat(worth)
    best = rows[users].argmax(axis=1)
    regret = _regret(rows[users])
    order = np.argsort(-regret, kind="stable")
    users, best = users[order], best[order]
    stations, servers = np.divmod(best, problem.shape[2])
    fits = np.ones(len(users), np.bool_)
    for server in np.unique(servers):
        here = np.flatnonzero(servers == server)
        fits[here] &= (np.cumsum(problem.demand[users[here]], axis=0) <= state.free[server]).all(axis=1)
    for station in np.unique(stations):
        here = np.flatnonzero(stations == station)
        fits[here[max(0, state.open[station]):]] = False  # fmt: skip
    for user, option in zip(users[fits], best[fits], strict=True):
        state.put(int(user), int(option))
    return [int(user) for user in users[~fits] if not _put_best(state, worth, int(user))]


def _regret(worth: Reals) -> Reals:
    if worth.shape[1] < 2:
        return np.zeros(len(worth))
    two = np.partition(worth, -2, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):
        regret = two[:, 1] - two[:, 0]
    return np.where(np.isfinite(regret), regret, np.inf)


def _put_best(state: State, worth: Reals, user: int) -> bool:
    """At his best option that has room; False when there is none."""
    possible = np.where(state.room(user), worth[user], -np.inf)
    option = int(possible.argmax())
    if possible.flat[option] == -np.inf:
        return False
    state.put(user, option)
    return True


def _push(state: State, worth: Reals, homeless: list[int]) -> list[int]:
    """Make room for who has none: at the option where least is lacking others are moved aside, who then look for a
    place themselves. An option where this happened grows dearer, so that it does not go round in circles."""
    waiting = deque(homeless)
    dearer = np.zeros(state.problem.shape[1:])
    spread = float(np.ptp(worth[np.isfinite(worth)])) if waiting else 0.0
    for _ in range(PUSHES):
        if not waiting:
            break
        user = waiting.popleft()
        if _put_best(state, worth, user):
            continue
        option = _least_lacking(state, worth, user, dearer, spread)
        if option is None:
            waiting.append(user)
            break
        station, server = divmod(option, state.problem.shape[2])
        dearer[station, server] += 1.0
        aside = _aside(state, worth, user, station, server)
        for other in aside:
            state.take(other)
        state.put(user, option)
        waiting.extend(aside)
    return list(waiting)


def _least_lacking(state: State, worth: Reals, user: int, dearer: Reals, spread: float) -> int | None:
    problem = state.problem
    size = np.maximum(problem.capacity, 1e-12)
    lacking = (np.maximum(0.0, problem.demand[user] - state.free) / size).max(axis=1)
    # who is left cannot be moved aside: there must be enough without him
    reserved = np.zeros_like(problem.capacity)
    counted = state.left & problem.stays_counted
    np.add.at(reserved, problem.home_server[counted], problem.demand[counted])
    possible = (problem.demand[user] <= problem.capacity * (1 + ROOM) - reserved).all(axis=1)
    full = (state.open <= 0) * 0.05
    price = spread * (lacking[None, :] + full[:, None] + 0.02 * dearer)
    allowed = np.isfinite(worth[user]) & possible[None, :] & (problem.places > 0)[:, None]
    score = np.where(allowed, worth[user] - price, -np.inf)
    option = int(score.argmax())
    return None if score.flat[option] == -np.inf else option


def _aside(state: State, worth: Reals, user: int, station: int, server: int) -> list[int]:
    """Whom to move so that the user fits: those who lose least by their next best place, for what they free."""
    problem = state.problem
    at_station, at_server = np.divmod(state.choice, problem.shape[2])
    placed: Flags = np.asarray(state.choice >= 0)
    aside: list[int] = []
    need = problem.demand[user] - state.free[server]
    others = np.flatnonzero(placed & (at_server == server))
    rows = flat(worth)
    if (need > 0).any():
        relief = (
            np.minimum(problem.demand[others], np.maximum(need, 0)) / np.maximum(problem.capacity[server], 1e-12)
        ).sum(axis=1)
        elsewhere = np.delete(worth[others], server, axis=2).max(axis=(1, 2), initial=-np.inf)
        loss = np.where(np.isfinite(elsewhere), rows[others, state.choice[others]] - elsewhere, np.inf)
        for index in np.argsort(np.where(relief > 0, np.maximum(loss, 0) / np.maximum(relief, 1e-12), np.inf)):
            if (need <= 0).all():
                break
            if relief[index] > 0:
                aside.append(int(others[index]))
                need = need - problem.demand[others[index]]
    if state.open[station] <= 0 and not any(at_station[other] == station for other in aside):
        there = np.flatnonzero(placed & (at_station == station))
        elsewhere = np.delete(worth[there], station, axis=1).max(axis=(1, 2), initial=-np.inf)
        loss = np.where(np.isfinite(elsewhere), rows[there, state.choice[there]] - elsewhere, np.inf)
        aside.append(int(there[loss.argmin()]))
    return aside


def improve(problem: Problem, state: State, sweeps: int = 12) -> Indices:
    """Single users to where more is gained and there is room, the greatest gain first, until nothing is left."""
    users = np.flatnonzero(~state.left)
    if not len(users):
        return state.choice
    worth, demand = problem.profit[users], problem.demand[users]
    rows = np.arange(len(users))
    for _ in range(sweeps):
        stations, servers = np.divmod(state.choice[users], problem.shape[2])
        fits: Flags = np.asarray((demand[:, None, :] <= state.free[None]).all(axis=2))
        fits[rows, servers] = True
        reachable = np.broadcast_to(state.open > 0, (len(users), len(state.open))).copy()
        reachable[rows, stations] = True
        possible = flat(np.where(reachable[:, :, None] & fits[:, None, :], worth, -np.inf))
        best = possible.argmax(axis=1)
        more = possible[rows, best] - flat(worth)[rows, state.choice[users]]
        moved = False
        for index in np.argsort(-more, kind="stable"):
            if more[index] <= 1e-9:
                break
            moved |= _move(state, int(users[index]), int(best[index]))
        if not moved:
            break
    return state.choice


def _move(state: State, user: int, option: int) -> bool:
    """To another option, if there still is room."""
    before = int(state.choice[user])
    state.take(user)
    station, server = divmod(option, state.problem.shape[2])
    there_is = state.open[station] > 0 and bool((state.problem.demand[user] <= state.free[server]).all())
    state.put(user, option if there_is else before)
    return there_is


def exchange(problem: Problem, choice: Indices) -> Indices:
    """Better by chains of two: one user goes to an option that he gains by, where another has to make room, who
    loses less by his own next place. Once over the users who would gain most;
    then single moves again."""
    state = State(problem, choice < 0)
    for user in np.flatnonzero(choice >= 0):
        state.put(int(user), int(choice[user]))
    rows = flat(problem.profit)
    users = np.flatnonzero(choice >= 0)
    wish = rows[users].max(axis=1, initial=-np.inf) - rows[users, choice[users]]
    for user in users[np.argsort(-wish, kind="stable")][:WISHERS]:
        now = rows[user, state.choice[user]]
        better = np.flatnonzero(rows[user] > now + 1e-9)
        for option in better[np.argsort(-rows[user, better], kind="stable")[:WISHES]]:
            if _chain(state, int(user), int(option), float(rows[user, option] - now)):
                break
    return improve(problem, state)


def _chain(state: State, user: int, option: int, gain: float) -> bool:
    """Put the user there and whoever has to go where that one loses least, if both together gain; else nothing."""
    problem = state.problem
    width = problem.shape[2]
    station, server = divmod(option, width)
    before = int(state.choice[user])
    state.take(user)
    if state.open[station] > 0 and (problem.demand[user] <= state.free[server]).all():
        state.put(user, option)
        return True
    at_station, at_server = np.divmod(state.choice, width)
    placed: Flags = np.asarray(state.choice >= 0)
    need = problem.demand[user] - state.free[server]
    if state.open[station] > 0:
        others = np.flatnonzero(placed & (at_server == server))
    else:
        others = np.flatnonzero(placed & (at_station == station))
    makes_room = (np.where((at_server[others] == server)[:, None], problem.demand[others], 0.0) >= need).all(axis=1)
    others = others[makes_room]
    if len(others):
        # what is free once the user is at his new place; the other's own room comes back below
        free = state.free.copy()
        free[server] -= problem.demand[user]
        there_is = state.open.copy()
        there_is[station] -= 1
        fits: Flags = np.asarray((problem.demand[others][:, None, :] <= free[None]).all(axis=2))
        at_home = (problem.demand[others] <= free[at_server[others]] + problem.demand[others]).all(axis=1)
        fits[np.arange(len(others)), at_server[others]] = at_home
        reach = np.broadcast_to(there_is > 0, (len(others), len(there_is))).copy()
        reach[np.arange(len(others)), at_station[others]] = there_is[at_station[others]] + 1 > 0
        possible = flat(np.where(reach[:, :, None] & fits[:, None, :], problem.profit[others], -np.inf))
        best = possible.argmax(axis=1)
        net = gain + possible[np.arange(len(others)), best] - flat(problem.profit)[others, state.choice[others]]
        index = int(net.argmax())
        if net[index] > 1e-9:
            other = int(others[index])
            state.take(other)
            state.put(user, option)
            state.put(other, int(best[index]))
            return True
    state.put(user, before)
    return False
