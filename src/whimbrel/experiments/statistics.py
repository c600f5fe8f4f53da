"""Mean, standard deviation and confidence interval. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Of `n` values. `sd` (divisor n - 1) and `ci95` (half the interval's width) need two of them, else None."""

    n: int
    mean: float
    median: float
    sd: float | None
    ci95: float | None


def estimate(values: Sequence[float]) -> Estimate | None:
    """None when there is no value. The interval of the mean is Student's: t(0.975, n - 1) * sd / sqrt(n)."""
    if not values:
        return None
    mean, median = statistics.fmean(values), statistics.median(values)
    if len(values) == 1:
        return Estimate(n=1, mean=mean, median=median, sd=None, ci95=None)
    sd = statistics.stdev(values)
    half = student_t(len(values) - 1) * sd / math.sqrt(len(values))
    return Estimate(n=len(values), mean=mean, median=median, sd=sd, ci95=half)


def total(values: Sequence[float]) -> Estimate | None:
    """The sum in the place of the mean, for what is counted."""
    if not values:
        return None
    return Estimate(n=len(values), mean=sum(values), median=statistics.median(values), sd=None, ci95=None)


def student_t(degrees: int, level: float = 0.95) -> float:
    """The two-sided critical value of Student's distribution."""
    from scipy.special import stdtrit  # here: importing scipy takes longer than most commands do

    return float(stdtrit(degrees, (1 + level) / 2))
