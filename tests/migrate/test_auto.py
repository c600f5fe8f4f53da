"""`auto` on a real lab: what it chooses, that it says why, and that a known handover is waited for."""

from __future__ import annotations

import re

import pytest

from tests.migrate import conftest
from tests.migrate.conftest import EDGES, Running
from tests.migrate.test_strategies import state_is_right
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.strategies import known


def moved(running: Running, *, contents: str = "words", **limits: float) -> MigrationRecord:
    node = running.node
    to = EDGES[(EDGES.index(node) + 1) % len(EDGES)]
    record = running.lab.controller.migrate(running.name, to, "auto", **limits)  # type: ignore[arg-type]
    assert not record.error, record.error
    assert record.outcome is Outcome.DONE
    assert record.asked == "auto"
    assert running.node == to
    assert state_is_right(running, contents)
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


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Running:
    """Writes all over its memory what no codec makes smaller, 600 pages/s or as many as the test asks for."""
    pages_per_s = getattr(request, "param", 600)
    monkeypatch.setattr(conftest, "MORE_ENV", ("CONTENTS=random", f"DIRTY_PAGES_PER_S={pages_per_s}"))
    running: Running = request.getfixturevalue("running")
    return running


def test_a_deadline_with_room_for_two_rounds_gets_them(writer: Running) -> None:
    """All of it crosses in some 3 s, which leaves too little for as much again, yet enough for what is dirty then."""
    record = moved(writer, contents="random", deadline_ms=7000.0, bandwidth_bps=80e6)
    assert record.strategy == "hybrid"
    first, second, *_, last = record.rounds
    assert len(record.rounds) >= 3, record.reason
    assert first.dirty_pages > second.dirty_pages > last.dirty_pages
    assert re.search(r"[0-9.]+ MB/s are written and [0-9.]+ MB/s cross: ", record.reason)


@pytest.mark.parametrize("writer", [3000], indirect=True)
def test_a_deadline_that_rounds_turn_out_to_miss_leaves_the_rest_behind(writer: Running) -> None:
    """The first round tells how fast it writes: others would take too long, and what is dirty would lengthen the
    freeze."""
    record = moved(writer, contents="random", deadline_ms=7000.0, bandwidth_bps=80e6)
    assert len(record.rounds) == 2, record.reason
    assert "that is over 100 ms, so what is dirty now follows the resume" in record.reason
    first, last = record.rounds
    assert last.dirty_pages < first.dirty_pages / 4
    assert record.bytes_sent > first.bytes_sent + last.bytes_sent, "the rest came behind"


def test_a_budget_that_the_last_pages_would_break_leaves_them_behind(running: Running) -> None:
    record = moved(
        running, max_downtime_ms=60.0, bandwidth_bps=20e6
    )  # what a freeze without pages is predicted to take
    assert record.strategy in ("hybrid", "post-copy")
    assert "follows the resume" in record.reason or "would miss --max-downtime" in record.reason


@pytest.mark.parametrize("strategy", sorted(known()))
def test_bandwidth_is_kept_to(writer: Running, strategy: str) -> None:
    """Memory of 24 MB over 400 Mbit/s takes half a second at least, whatever the machine can do."""
    bandwidth_bps = 400e6
    record = writer.lab.controller.migrate(writer.name, EDGES[1], strategy, bandwidth_bps=bandwidth_bps)
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    assert state_is_right(writer, "random")
    first = record.rounds[0]
    if strategy == "post-copy":
        finish = next(phase for phase in record.phases if phase.name == "finish")
        sent_bytes, took_ms = record.bytes_sent - first.bytes_sent, finish.start_ms + finish.duration_ms
    elif strategy == "shared":  # what is written to the storage: noise, so all of it
        sent_bytes, took_ms = first.raw_bytes - first.zero_pages * PAGE_BYTES, first.duration_ms
    else:
        sent_bytes, took_ms = first.bytes_sent, first.duration_ms
    assert sent_bytes > writer.memory_mb << 20, "all of it was to cross"
    assert sent_bytes * 8 / bandwidth_bps * 1e3 <= took_ms * 1.1
