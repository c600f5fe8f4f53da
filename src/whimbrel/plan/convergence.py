"""When to stop the rounds of a pre-copy and freeze. Pure; tested by tables.

The rule follows `train` IV step 2 and `fast` II-A5 (rounds until the change is small), with the ends that a real
service needs: it may dirty memory faster than the link carries it, and the user may have set a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Stop(StrEnum):
    """Why the rounds end; `GO_ON` means another round."""

    GO_ON = "go-on"
    SMALL = "the dirty set is small"
    MEETS_BUDGET = "the predicted freeze meets --max-downtime"
    NO_PROGRESS = "the dirty set no longer shrinks"
    ROUND_LIMIT = "the limit of rounds is reached"
    DEADLINE = "the deadline leaves no time for another round"


@dataclass(frozen=True)
class RoundFacts:
    """One round that has crossed: how much was dirty at its start, and how long it took to send."""

    dirty_bytes: int
    duration_ms: float


@dataclass(frozen=True)
class Limits:
    """`converge` False: exactly `max_rounds` rounds, unless the deadline forbids. `fixed_freeze_ms` is what a freeze
    costs without a single page; 0 for a budget or deadline means none."""

    small_bytes: int = 1 << 20
    max_rounds: int = 12
    min_shrink: float = 0.9
    max_downtime_ms: float = 0.0
    deadline_ms: float = 0.0
    fixed_freeze_ms: float = 60.0
    converge: bool = True


def predicted_freeze_ms(rounds: Sequence[RoundFacts], limits: Limits) -> float:
    """The freeze if it began now: the fixed part, and as much as the last round had dirty at the rate seen so far.

    After the first round, which holds all of memory, that is all of it: far too much, but only a second round tells how
    much the program writes. Infinite before any round.
    """
    if not rounds:
        return float("inf")
    sent_bytes = sum(facts.dirty_bytes for facts in rounds)
    took_ms = sum(facts.duration_ms for facts in rounds)
    rate = sent_bytes / took_ms if took_ms > 0 else float("inf")
    return limits.fixed_freeze_ms + (rounds[-1].dirty_bytes / rate if rate > 0 else 0.0)


def decide(rounds: Sequence[RoundFacts], limits: Limits, *, elapsed_ms: float = 0.0) -> Stop:
    """After the given rounds: freeze now, and why, or go on."""
    if not rounds:
        return Stop.GO_ON
    last = rounds[-1]
    freeze_ms = predicted_freeze_ms(rounds, limits)
    if limits.deadline_ms > 0 and elapsed_ms + last.duration_ms + freeze_ms >= limits.deadline_ms:
        return Stop.DEADLINE
    if len(rounds) >= limits.max_rounds:
        return Stop.ROUND_LIMIT
    if len(rounds) == 1 or not limits.converge:
        return Stop.GO_ON
    if limits.max_downtime_ms > 0 and freeze_ms <= limits.max_downtime_ms:
        return Stop.MEETS_BUDGET
    if last.dirty_bytes <= limits.small_bytes:
        return Stop.SMALL
    if limits.max_downtime_ms <= 0 and last.dirty_bytes >= limits.min_shrink * rounds[-2].dirty_bytes:
        return Stop.NO_PROGRESS
    return Stop.GO_ON
