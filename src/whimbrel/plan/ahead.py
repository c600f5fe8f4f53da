"""How long before its freeze a migration has to be begun: T_pre-mig of `coordinated` (5) as our strategies have it.

The memory's transfer (`plan.downtime.predict`) is one part. The other does not follow the memory: looking, preparing
the destination, the rounds after the first. It is a number of round trips between the two servers and work that takes
its time, and is learnt from the migrations that were, as a median.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.plan.convergence import Limits, RoundFacts, Stop, decide

UNKNOWN_MS = 700.0
ROUND_TRIPS = 24
"""Before any migration: work, and the round trips of preflight and prepare."""
KEPT = 20
BEFORE = ("preflight", "prepare")


def preparation_ms(record: MigrationRecord) -> float | None:
    """What came before the first round, and the rounds after it until they no longer helped (those that came then kept
    the destination fresh); None for what did not come to its end."""
    took_ms = {phase.name: phase.duration_ms for phase in record.phases}
    if record.outcome is not Outcome.DONE or not all(name in took_ms for name in BEFORE):
        return None
    if record.image_bytes:  # it tells nothing of a migration that does not bring the image
        return None
    # the last round is the freeze's
    facts = [RoundFacts(dirty_bytes=one.raw_bytes, duration_ms=one.duration_ms) for one in record.rounds[:-1]]
    needed = next((n for n in range(1, len(facts)) if decide(facts[:n], Limits()) is not Stop.GO_ON), len(facts))
    return sum(took_ms[name] for name in BEFORE) + sum(one.duration_ms for one in facts[1:needed])


def preparation_of(records: Sequence[MigrationRecord], source: str, destination: str, rtt_ms: float) -> float:
    """For the way between two servers; of the same way back where it was never gone; else by the round-trip time."""
    for way in ({(source, destination)}, {(source, destination), (destination, source)}):
        known = [ms for one in records if (one.source, one.destination) in way
                 and (ms := preparation_ms(one)) is not None]  # fmt: skip
        if known:
            return median(known[-KEPT:])
    return UNKNOWN_MS + ROUND_TRIPS * rtt_ms
