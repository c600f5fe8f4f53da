"""When the next handover will be, and where to, with how far that is sure.

The rule of `handover` is played forward on many possible futures of the RSSI (a Monte Carlo over what the filter does
not know: level, slope, shadows to come), and the times at which it decides are counted. A first crossing of a restless
difference comes earlier than the crossing of its mean, and the time to trigger delays it; played forward, both are
right without correction. Where the path is known, the mean level comes from it, and only the shadows are chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whimbrel.model.radio import HandoverForecast
from whimbrel.ran import tracking
from whimbrel.ran.handover import HandoverRule, State, margin_to
from whimbrel.ran.mobility import Track
from whimbrel.ran.pathloss import Air, Floats, PathLoss

FUTURES = 200
STEP_S = 0.1
MOST_STEPS = 300
LEAST_CHANCE = 0.05  # of a handover within the horizon: below it there is none to forecast

Booleans = NDArray[np.bool_]
# Futures of one station: an array (futures, steps) of what will be heard, dBm.
Draw = Callable[[str, np.random.Generator], Floats]


@dataclass(frozen=True)
class Times:
    """The moments looked at, seconds from now."""

    horizon_s: float

    @property
    def step_s(self) -> float:
        return max(STEP_S, self.horizon_s / MOST_STEPS)

    @property
    def ahead_s(self) -> Floats:
        return np.arange(1, math.ceil(self.horizon_s / self.step_s) + 1, dtype=np.float64) * self.step_s


def by_slope(
    rule: HandoverRule,
    losses: Mapping[str, PathLoss],
    state: State,
    known: Mapping[str, tracking.Estimate],
    now_s: float,
    speed_m_per_s: float,
    *,
    horizon_s: float = 20.0,
    seed: int = 1,
) -> HandoverForecast | None:
    """Where nobody knows the path: the levels go on as they went. None when no handover is likely within the
    horizon."""
    times = Times(horizon_s)

    def draw(name: str, rng: np.random.Generator) -> Floats:
        loss, count = losses[name], len(times.ahead_s)
        now = tracking.ahead(loss, known[name], max(now_s, known[name].t_s), speed_m_per_s)
        first = rng.multivariate_normal(now.mean, now.covariance, FUTURES, check_valid="ignore", method="eigh")
        spread = tracking.slope_spread(loss, speed_m_per_s) * math.sqrt(times.step_s)
        slopes = first[:, 1:2] + np.cumsum(spread * rng.standard_normal((FUTURES, count)), axis=1)
        means = first[:, 0:1] + np.cumsum(slopes * times.step_s, axis=1)
        ways_m = np.full(count, speed_m_per_s * times.step_s)
        return np.asarray(means + shadows_to_come(loss, first[:, 2], ways_m, rng))

    return _play(rule, losses, state, sorted(known), now_s, times, draw, "slope", seed)


def by_path(
    rule: HandoverRule,
    air: Air,
    state: State,
    known: Mapping[str, tracking.Estimate],
    track: Track,
    now_s: float,
    *,
    horizon_s: float = 60.0,
    seed: int = 1,
) -> HandoverForecast | None:
    """Where the path is known; `now_s` is the time on it. What is heard beyond the mean by distance is shadow: its
    value now is known, and it fades with the way gone."""
    losses = {name: station.loss for name, station in air.stations.items()}
    times = Times(horizon_s)
    places = [track.at(now_s + float(ahead_s)) for ahead_s in (0.0, *times.ahead_s)]
    x_m, y_m = (np.array([place[axis] for place in places]) for axis in (0, 1))
    ways_m = np.hypot(np.diff(x_m), np.diff(y_m))

    def draw(name: str, rng: np.random.Generator) -> Floats:
        loss, means = losses[name], air.mean_dbm(name, x_m, y_m)
        if name in known:
            level, variance = _level(known[name])
            first = rng.normal(level - float(means[0]), math.sqrt(variance), FUTURES)
        else:
            first = rng.normal(0.0, loss.shadowing_db, FUTURES)
        return np.asarray(means[1:] + shadows_to_come(loss, first, ways_m, rng))

    return _play(rule, losses, state, sorted(air.stations), now_s, times, draw, "path", seed)


def _level(known: tracking.Estimate) -> tuple[float, float]:
    """What is heard, and its variance."""
    sees = np.array([1.0, 0.0, 1.0])
    return known.level_dbm, max(float(sees @ known.covariance @ sees), 1e-6)


def shadows_to_come(loss: PathLoss, first: Floats, ways_m: Floats, rng: np.random.Generator) -> Floats:
    """Shadows (futures, steps) that begin as `first` and fade by Gudmundson over each step's way."""
    left = np.exp(-ways_m / loss.correlation_m)
    fresh = loss.shadowing_db * np.sqrt(1 - left**2) * rng.standard_normal((len(first), len(ways_m)))
    shadows: Floats = np.empty(fresh.shape)
    now = first
    for index in range(len(ways_m)):
        now = left[index] * now + fresh[:, index]
        shadows[:, index] = now
    return shadows


def _play(
    rule: HandoverRule,
    losses: Mapping[str, PathLoss],
    state: State,
    names: list[str],
    now_s: float,
    times: Times,
    draw: Draw,
    source: str,
    seed: int,
) -> HandoverForecast | None:
    if state.serving is None or state.target is not None:
        return None
    rng = np.random.default_rng(seed)
    futures = {name: draw(name, rng) for name in sorted({*names, state.serving} & losses.keys()) if name in names}
    own = futures.pop(state.serving, None)
    if not futures:
        return None
    if own is None:  # it is not heard any more
        own = np.full_like(next(iter(futures.values())), losses[state.serving].floor_dbm)
    weak = _lasting(own < losses[state.serving].sensitivity_dbm, rule.lost_after_ms, times.step_s)
    others = sorted(futures)
    decided_s = np.stack(
        [_first_s(rule, losses[name], state, name, now_s, times, futures[name], own, weak) for name in others]
    )
    first_s = decided_s.min(axis=0)
    happens = np.isfinite(first_s)
    chance = float(happens.mean())
    if chance < LEAST_CHANCE:
        return None
    targets = decided_s.argmin(axis=0)[happens]
    early_s, median_s, late_s = (float(np.quantile(first_s[happens], share)) for share in (0.1, 0.5, 0.9))
    then = min(int(np.searchsorted(times.ahead_s, median_s)), len(times.ahead_s) - 1)
    levels = {name: round(float(level[:, then].mean()), 2) for name, level in {**futures, state.serving: own}.items()}
    return HandoverForecast(
        target=others[int(np.bincount(targets).argmax())],
        median_s=round(median_s, 3),
        early_s=round(early_s, 3),
        late_s=round(late_s, 3),
        chance=chance,
        horizon_s=times.horizon_s,
        source=source,
        levels_dbm=levels,
    )


def _first_s(
    rule: HandoverRule,
    loss: PathLoss,
    state: State,
    name: str,
    now_s: float,
    times: Times,
    level: Floats,
    own: Floats,
    weak: Booleans,
) -> Floats:
    """For each future the time at which the rule would hand over to this station; infinite for never."""
    margins = np.array([margin_to(rule, state, name, now_s + ahead_s) for ahead_s in times.ahead_s])
    usable = level >= loss.sensitivity_dbm
    stronger = usable & (level > own + margins)
    waited_ms = (now_s - state.candidate_since_s) * 1000 if state.candidate == name else 0.0
    decided = _lasting(stronger, rule.time_to_trigger_ms, times.step_s, waited_ms) | (weak & usable)
    found = decided.any(axis=1)
    return np.asarray(np.where(found, times.ahead_s[decided.argmax(axis=1)], np.inf), dtype=np.float64)


def _lasting(holds: Booleans, time_ms: float, step_s: float, waited_ms: float = 0.0) -> Booleans:
    """Where a condition has held for `time_ms` on end; `waited_ms` of it before the first step."""
    number = np.arange(1, holds.shape[1] + 1)
    last_broken = np.maximum.accumulate(np.where(holds, 0, number), axis=1)
    held_ms = (number - last_broken) * step_s * 1000 + np.where(last_broken == 0, waited_ms, -step_s * 1000)
    return np.asarray(holds & (held_ms >= time_ms - 1e-6))
