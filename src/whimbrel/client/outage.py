"""What a client saw, out of the times of its requests. Pure: no clock, no sockets; standard library only.

Times are integers in nanoseconds of one monotonic clock; the answer time 0 means "never answered".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NS_PER_MS = 1e6


@dataclass(frozen=True)
class Trace:
    """Requests in the order they were sent. `until_ns` is when the first answer to a request after these came
    (then `heard_later`), or else when the observation ended."""

    sent_ns: Sequence[int]
    answered_ns: Sequence[int]
    until_ns: int
    heard_later: bool = False

    @property
    def lost(self) -> int:
        """Requests never answered."""
        return sum(1 for answered in self.answered_ns if not answered)

    def delays_ms(self) -> list[float]:
        """Per request, how long its sender was without an answer.

        For an answered request this is answer minus sending. A lost request counts until the first answer to
        any later request: without this rule, losing every packet of a gap would look like no gap at all. When
        nothing was ever heard again it counts until the end of the observation (a lower bound).
        """
        heard_ns = self.until_ns
        delays = [0.0] * len(self.sent_ns)
        for index in range(len(self.sent_ns) - 1, -1, -1):
            answered = self.answered_ns[index]
            if answered:
                heard_ns = min(heard_ns, answered)
            delays[index] = ((answered or heard_ns) - self.sent_ns[index]) / NS_PER_MS
        return delays


@dataclass(frozen=True)
class Outage:
    """`outage_ms` = `longest_ms` - `median_ms` of the quiet phase, never below 0; `at_ms` = when the request
    with the longest delay was sent, counted from the start mark."""

    outage_ms: float
    longest_ms: float
    median_ms: float
    at_ms: float


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of all values do not exceed (nearest rank); NaN if none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones; NaN for none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def outage(quiet: Trace, moved: Trace, start_ns: int) -> Outage | None:
    """The outage of one window; None when the window or its quiet phase has no request to judge by."""
    quiet_delays, delays = quiet.delays_ms(), moved.delays_ms()
    if not quiet_delays or not delays:
        return None
    index = max(range(len(delays)), key=delays.__getitem__)
    usual = median(quiet_delays)
    return Outage(
        outage_ms=max(0.0, delays[index] - usual),
        longest_ms=delays[index],
        median_ms=usual,
        at_ms=(moved.sent_ns[index] - start_ns) / NS_PER_MS,
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """``{"p50", "p99", "max"}`` of values; empty for none (JSON has no NaN)."""
    if not values:
        return {}
    return {"p50": median(values), "p99": quantile(values, 0.99), "max": max(values)}


class CounterCheck:
    """The service's own counters, seen from one user: requests go up by one each, writes never go back."""

    def __init__(self) -> None:
        self.requests = self.writes = -1
        self.unanswered = 0

    def broken(self) -> None:
        """The connection broke with a request under way: the service may or may not have counted it."""
        self.unanswered += 1

    def accepts(self, requests: int, writes: int) -> bool:
        due = self.requests + 1
        fine = self.requests < 0 or (due <= requests <= due + self.unanswered and writes >= self.writes)
        self.requests, self.writes, self.unanswered = requests, writes, 0
        return fine
