"""When to stop the rounds of a pre-copy and freeze. Pure; tested by tables.

The rule follows `train` IV step 2 and `fast` II-A5 (rounds until the change is small), with the ends that a real
service needs: it may dirty memory faster than the link carries it, and the user may have set a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LONG_FREEZE_MS = 100.0
"""What a migration is to stay below."""
FIXED_FREEZE_MS = 60.0
"""What a freeze costs without a single page."""
WORTH_MS, MOMENT_MS = 10.0, 100.0
"""From so much on that pages take in a freeze it is worth waiting for a moment in which the program does nothing, and
so long at most."""


class Stop(StrEnum):
    """Why the rounds end; `GO_ON` means another round."""

    GO_ON = "go-on"
    SMALL = "the dirty set is small"
    MEETS_BUDGET = "the predicted freeze meets --max-downtime"
    NO_PROGRESS = "the dirty set no longer shrinks"
    ROUND_LIMIT = "the limit of rounds is reached"
    DUE = "the freeze is due"
    DEADLINE = "the deadline leaves no time for another round"


@dataclass(frozen=True)
class RoundFacts:
    """One round that has crossed: how much was dirty at its start, how long it took to send, and how much was dirty
    again when it had crossed (None where nobody looked)."""

    dirty_bytes: int
    duration_ms: float
    left_bytes: int | None = None

    @property
    def next_bytes(self) -> int:
        """What a next round would carry: unless somebody looked, as much again."""
        return self.dirty_bytes if self.left_bytes is None else self.left_bytes

    @property
    def written_bytes_per_s(self) -> float | None:
        """The rate at which the program wrote to memory that was clean, while this round crossed."""
        return None if self.left_bytes is None or self.duration_ms <= 0 else self.left_bytes / self.duration_ms * 1e3


@dataclass(frozen=True)
class Limits:
    """`converge` False: exactly `max_rounds` rounds, unless the deadline forbids. `fixed_freeze_ms` is what a freeze
    costs without a single page; 0 for a budget or deadline means none."""

    small_bytes: int = 1 << 20
    max_rounds: int = 12
    min_shrink: float = 0.9
    max_downtime_ms: float = 0.0
    deadline_ms: float = 0.0
    fixed_freeze_ms: float = FIXED_FREEZE_MS
    converge: bool = True


def predicted_freeze_ms(rounds: Sequence[RoundFacts], limits: Limits) -> float:
    """The freeze if it began now: the fixed part, and what is dirty at the rate seen so far.

    Where nobody looked, as much as the last round carried counts as dirty: after the first, which holds all of memory,
    that is far too much. Infinite before any round.
    """
    if not rounds:
        return float("inf")
    return limits.fixed_freeze_ms + _crossing_ms(rounds, rounds[-1].next_bytes)


def worth_waiting_ms(freeze_ms: float, max_downtime_ms: float = 0.0, left_ms: float = 0.0) -> float:
    """How long the freeze, predicted so long, may wait for a moment in which nobody in the service is at work, before
    the hold and again under it. Less is dirty then, as a program gives back what it took for its work, and the work
    need not go on at a place where its memory is still to be touched for the first time: worth about twice what the
    pages would take. Not where it could cost the budget, as who is held waits too, or the time left (0: any)."""
    pages_ms = freeze_ms - FIXED_FREEZE_MS
    if pages_ms < WORTH_MS:
        return 0.0
    budget_ms = max_downtime_ms - freeze_ms if max_downtime_ms else MOMENT_MS
    spare_ms = (left_ms - freeze_ms) / 2 if left_ms else MOMENT_MS
    return max(0.0, min(2 * pages_ms, MOMENT_MS, budget_ms, spare_ms))


def crossing_bytes_per_s(rounds: Sequence[RoundFacts]) -> float:
    """How fast dirty memory has crossed so far, codecs and all; infinite when it took no time."""
    sent_bytes = sum(facts.dirty_bytes for facts in rounds)
    took_ms = sum(facts.duration_ms for facts in rounds)
    return sent_bytes / took_ms * 1e3 if took_ms > 0 else float("inf")


def _crossing_ms(rounds: Sequence[RoundFacts], size_bytes: float) -> float:
    rate = crossing_bytes_per_s(rounds)
    return size_bytes / rate * 1e3 if rate > 0 else 0.0


def _after_another_ms(rounds: Sequence[RoundFacts], limits: Limits) -> float:
    """Another round and the freeze after it, in which crosses what is written during that round: as much as the rate
    of writing says, and no more than what is dirty now, which is where the program writes."""
    last = rounds[-1]
    round_ms = _crossing_ms(rounds, last.next_bytes) if last.left_bytes is not None else last.duration_ms
    written = last.written_bytes_per_s
    again_bytes = last.next_bytes if written is None else min(last.next_bytes, written * round_ms / 1e3)
    return round_ms + limits.fixed_freeze_ms + _crossing_ms(rounds, again_bytes)


def decide(rounds: Sequence[RoundFacts], limits: Limits, *, elapsed_ms: float = 0.0, due: bool = False) -> Stop:
    """After the given rounds: freeze now, and why, or go on. `due`: the time at which it was to begin is past."""
    if not rounds:
        return Stop.GO_ON
    last = rounds[-1]
    freeze_ms = predicted_freeze_ms(rounds, limits)
    if limits.deadline_ms > 0 and elapsed_ms + _after_another_ms(rounds, limits) >= limits.deadline_ms:
        return Stop.DEADLINE
    if len(rounds) >= limits.max_rounds:
        return Stop.ROUND_LIMIT
    if len(rounds) == 1 or not limits.converge:
        return Stop.GO_ON
    if due:
        return Stop.DUE
    if limits.max_downtime_ms > 0 and freeze_ms <= limits.max_downtime_ms:
        return Stop.MEETS_BUDGET
    if last.dirty_bytes <= limits.small_bytes:
        return Stop.SMALL
    if limits.max_downtime_ms <= 0 and last.dirty_bytes >= limits.min_shrink * rounds[-2].dirty_bytes:
        return Stop.NO_PROGRESS
    return Stop.GO_ON
