"""What a base station's RSSI really is, and where it goes: a Kalman filter for each station.

Shadowing is no noise that averages out: a user who walks at 1 m/s keeps the same shadow for ten seconds, and a slope
drawn through it points anywhere. So the state has three parts: the mean level by distance (dB), its slope (dB/s), and
the shadow (dB), of which is known that it fades with the way gone (Gudmundson). An exponential filter (3GPP TS 38.331,
clause 5.5.3.2) lags behind, takes the shadow's slope for the path's, and cannot say how unsure it is; docs/radio.md
compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from whimbrel.ran.pathloss import Floats, PathLoss

TYPICAL_DISTANCE_M = 30.0  # at which a station's mean level changes its slope while a user passes it
LONGEST_GAP_S = 10.0  # what was known longer ago tells nothing of the slope
LEAP_DB = 25.0  # a single measurement this far off is held back until the next one says the same


@dataclass(frozen=True)
class Estimate:
    """Mean and covariance of (mean level, slope, shadow) at `t_s`."""

    t_s: float
    mean: Floats
    covariance: Floats

    @property
    def level_dbm(self) -> float:
        """What is heard without measurement noise."""
        return float(self.mean[0] + self.mean[2])


def fading(loss: PathLoss, way_m: float) -> float:
    """The share of a shadow that is left after `way_m`."""
    return math.exp(-abs(way_m) / loss.correlation_m)


def slope_spread(loss: PathLoss, speed_m_per_s: float) -> float:
    """How much the slope of the mean level may change, (dB/s) per root of a second: as much as the slope itself in the
    time in which the user goes the typical distance."""
    slope = 10 * loss.exponent / math.log(10) * speed_m_per_s / TYPICAL_DISTANCE_M
    return slope * math.sqrt(max(speed_m_per_s, 1e-3) / TYPICAL_DISTANCE_M)


def begin(loss: PathLoss, t_s: float, rssi_dbm: float, speed_m_per_s: float) -> Estimate:
    shadow = loss.shadowing_db**2
    steepest = 10 * loss.exponent / math.log(10) * speed_m_per_s / TYPICAL_DISTANCE_M
    covariance = np.diag([shadow + loss.noise_db**2, steepest**2, shadow])
    covariance[0, 2] = covariance[2, 0] = -shadow  # their sum is what was measured
    return Estimate(t_s, np.array([rssi_dbm, 0.0, 0.0]), covariance)


def ahead(loss: PathLoss, estimate: Estimate, t_s: float, speed_m_per_s: float) -> Estimate:
    """The estimate for a later time, without a measurement."""
    gap_s = t_s - estimate.t_s
    left = fading(loss, speed_m_per_s * gap_s)
    step = np.array([[1.0, gap_s, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, left]])
    spread = slope_spread(loss, speed_m_per_s) ** 2
    covariance = step @ estimate.covariance @ step.T
    covariance[:2, :2] += spread * np.array([[gap_s**3 / 3, gap_s**2 / 2], [gap_s**2 / 2, gap_s]])
    covariance[2, 2] += loss.shadowing_db**2 * (1 - left**2)
    return Estimate(t_s, step @ estimate.mean, covariance)


def measured(loss: PathLoss, estimate: Estimate, rssi_dbm: float) -> Estimate:
    """The estimate with a measurement of that very time."""
    sees = np.array([1.0, 0.0, 1.0])
    variance = float(sees @ estimate.covariance @ sees) + max(loss.noise_db, 0.1) ** 2
    gain = estimate.covariance @ sees / variance
    mean = estimate.mean + gain * (rssi_dbm - float(sees @ estimate.mean))
    keep = np.eye(3) - np.outer(gain, sees)
    # Joseph's form keeps the covariance symmetric and positive whatever the rounding
    covariance = keep @ estimate.covariance @ keep.T + np.outer(gain, gain) * max(loss.noise_db, 0.1) ** 2
    return Estimate(estimate.t_s, mean, covariance)


@dataclass
class Tracker:
    """The estimates of one user's stations. A station that was not heard for long is forgotten."""

    losses: Mapping[str, PathLoss]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    _leaps: dict[str, float] = field(default_factory=dict)

    def hear(self, t_s: float, rssi_dbm: Mapping[str, float], speed_m_per_s: float) -> list[str]:
        """Take a measurement in; times must not go back (`sanity` sees to it). Returns stations whose measurement leapt
        and was held back."""
        leapt = []
        for name, level in rssi_dbm.items():
            loss, earlier = self.losses[name], self.estimates.get(name)
            if earlier is None or t_s - earlier.t_s > LONGEST_GAP_S:
                self.estimates[name] = begin(loss, t_s, level, speed_m_per_s)
                continue
            now = ahead(loss, earlier, t_s, speed_m_per_s)
            if abs(level - now.level_dbm) > LEAP_DB and not self._is_confirmed(name, level):
                self._leaps[name] = level
                leapt.append(name)
                continue
            if self._leaps.pop(name, None) is not None and abs(level - now.level_dbm) > LEAP_DB:
                self.estimates[name] = begin(loss, t_s, level, speed_m_per_s)  # it is so: another place, a door shut
                continue
            self.estimates[name] = measured(loss, now, level)
        for name in [name for name, known in self.estimates.items() if t_s - known.t_s > LONGEST_GAP_S]:
            del self.estimates[name]
        return leapt

    def _is_confirmed(self, name: str, level: float) -> bool:
        return name in self._leaps and abs(level - self._leaps[name]) <= LEAP_DB

    def heard_dbm(self, t_s: float, within_s: float) -> dict[str, float]:
        """Filtered RSSI of the stations measured within the last `within_s`."""
        return {name: known.level_dbm for name, known in self.estimates.items() if t_s - known.t_s <= within_s}

    def forget(self) -> None:
        """After a gap in time nothing is known of slopes."""
        self.estimates.clear()
        self._leaps.clear()
