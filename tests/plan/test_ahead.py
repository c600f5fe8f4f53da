"""How long before its freeze a migration is begun."""

from __future__ import annotations

from msgspec.structs import replace

from whimbrel.model.migration import MigrationRecord, Outcome, Phase, Round
from whimbrel.plan.ahead import ROUND_TRIPS, UNKNOWN_MS, preparation_ms, preparation_of


def migration(prepare_ms: float, source: str = "a", destination: str = "b") -> MigrationRecord:
    phases = (("preflight", 100.0), ("prepare", prepare_ms), ("rounds", 5000.0), ("freeze", 60.0))
    return MigrationRecord(
        id="m", service="s", source=source, destination=destination, strategy="hybrid", outcome=Outcome.DONE,
        phases=tuple(Phase(name=name, start_ms=0, duration_ms=took) for name, took in phases),
        rounds=tuple(Round(n=n, dirty_pages=9, bytes_sent=9, duration_ms=50.0 * n) for n in (1, 2, 3)),
    )  # fmt: skip


def test_what_does_not_follow_the_memory_is_learnt() -> None:
    assert preparation_ms(migration(900)) == 100 + 900 + 100, "preflight, prepare, and the second round"
    assert preparation_ms(replace(migration(900), outcome=Outcome.ROLLED_BACK)) is None
    assert preparation_ms(replace(migration(900), image_bytes=5)) is None, "it waited for the image"


def test_the_same_way_counts_most_then_the_way_back_then_the_round_trips() -> None:
    known = [migration(500), migration(900), migration(700), migration(100, "b", "a")]
    assert preparation_of(known, "a", "b", 10.0) == 900
    assert preparation_of(known[:3], "b", "a", 10.0) == 900
    assert preparation_of(known, "a", "c", 10.0) == UNKNOWN_MS + ROUND_TRIPS * 10
