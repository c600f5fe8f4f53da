"""`auto` on a real lab: what it chooses, that it says why, and that a known handover is waited for."""

from __future__ import annotations

from tests.migrate.conftest import EDGES, Running
from tests.migrate.test_strategies import state_is_right
from whimbrel.model.migration import MigrationRecord, Outcome


def moved(running: Running, **limits: float) -> MigrationRecord:
    node = running.node
    to = EDGES[(EDGES.index(node) + 1) % len(EDGES)]
    record = running.lab.controller.migrate(running.name, to, "auto", **limits)  # type: ignore[arg-type]
    assert not record.error, record.error
    assert record.outcome is Outcome.DONE
    assert record.asked == "auto"
    assert running.node == to
    assert state_is_right(running)
    return record


def test_without_limits_it_is_hybrid(running: Running) -> None:
    record = moved(running)
    assert record.strategy == "hybrid"
    assert "auto: it keeps the freeze short" in record.reason
    assert "Mbit/s" in record.reason


def test_a_known_handover_is_waited_for(running: Running) -> None:
    record = moved(running, handover_in_ms=7000.0)
    assert record.strategy == "hybrid"
    assert "the handover comes in 7.0 s" in record.reason
    freeze = next(phase for phase in record.phases if phase.name == "freeze")
    assert freeze.start_ms > 2000, "memory crosses ahead, but the service stays until the user leaves"
    assert len(record.rounds) > 3, "meanwhile the destination is kept fresh"


def test_a_deadline_that_rounds_would_miss_means_post_copy(running: Running) -> None:
    record = moved(running, deadline_ms=1500.0, bandwidth_bps=50e6)
    assert record.strategy == "post-copy"
    assert "would miss --deadline 1.5 s" in record.reason
    assert len(record.rounds) == 1, "nothing but the last look crossed before the freeze"


def test_a_budget_that_the_last_pages_would_break_leaves_them_behind(running: Running) -> None:
    record = moved(
        running, max_downtime_ms=60.0, bandwidth_bps=20e6
    )  # what a freeze without pages is predicted to take
    assert record.strategy in ("hybrid", "post-copy")
    assert "follows the resume" in record.reason or "would miss --max-downtime" in record.reason


def test_bandwidth_is_kept_to(running: Running) -> None:
    """Memory of 24 MB over 100 Mbit/s takes two seconds at least, whatever the machine can do."""
    record = moved(running, bandwidth_bps=100e6)
    first = record.rounds[0]
    assert first.bytes_sent * 8 / 100e6 * 1e3 <= first.duration_ms * 1.1
