"""What a migration costs on these machines without a single page: learnt from the records of earlier ones. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from whimbrel.model.migration import MigrationRecord, Outcome

HYBRID, POST_COPY, SHARED = "hybrid", "post-copy", "shared"
ENOUGH = 3
"""So many records of a strategy say more than what was measured elsewhere."""


@dataclass(frozen=True)
class Costs:
    """By strategy: the fixed part of the freeze, and of what comes before the first page crosses."""

    freeze_ms: Mapping[str, float]
    before_ms: Mapping[str, float]


ELSEWHERE = Costs(
    freeze_ms={HYBRID: 60.0, POST_COPY: 80.0, SHARED: 450.0}, before_ms={HYBRID: 300.0, POST_COPY: 300.0, SHARED: 500.0}
)
"""Medians of `whimbrel bench downtime` on another machine: for who has no records yet."""


def learnt(records: Iterable[MigrationRecord]) -> Costs:
    """Medians over the migrations that went well and brought no image; of a freeze without what crossed in it, at the
    rate that the rounds before had. Where there are too few, `ELSEWHERE`."""
    freezes: dict[str, list[float]] = {name: [] for name in ELSEWHERE.freeze_ms}
    befores: dict[str, list[float]] = {name: [] for name in ELSEWHERE.before_ms}
    for record in records:
        if record.outcome is not Outcome.DONE or record.image_bytes or record.strategy not in freezes:
            continue
        took_ms = {phase.name: phase.duration_ms for phase in record.phases}
        if "preflight" in took_ms and "prepare" in took_ms:
            befores[record.strategy].append(took_ms["preflight"] + took_ms["prepare"])
        crossing_ms = _crossing_ms(record)
        if crossing_ms is not None and record.freeze_ms > crossing_ms:
            freezes[record.strategy].append(record.freeze_ms - crossing_ms)
    return Costs(_medians(freezes, ELSEWHERE.freeze_ms), _medians(befores, ELSEWHERE.before_ms))


def _crossing_ms(record: MigrationRecord) -> float | None:
    """How long what crossed in the freeze took; None where nothing crossed before that would tell."""
    if len(record.rounds) < 2:
        return None
    *before, last = record.rounds
    shared = record.strategy == SHARED  # all memory is read from the storage then
    crossed_bytes = sum(turn.raw_bytes if shared else turn.bytes_sent for turn in before)
    took_ms = sum(turn.duration_ms for turn in before)
    if crossed_bytes <= 0 or took_ms <= 0:
        return None
    return (record.rss_bytes if shared else last.bytes_sent) / crossed_bytes * took_ms


def _medians(found: Mapping[str, list[float]], otherwise: Mapping[str, float]) -> dict[str, float]:
    return {name: median(values) if len(values) >= ENOUGH else otherwise[name] for name, values in found.items()}
