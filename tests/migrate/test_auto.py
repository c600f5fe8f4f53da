"""`auto` on a real lab: what it chooses, that it says why, and that a known handover is waited for."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from marks import thorough
from tests.migrate import conftest
from tests.migrate.conftest import EDGES, Running
from tests.migrate.test_strategies import state_is_right
from whimbrel.lab import commands
from whimbrel.model.migration import MigrationRecord, Outcome, Progress
from whimbrel.model.units import PAGE_BYTES
from whimbrel.network import netns
from whimbrel.plan.strategies import known
from whimbrel.wire.calls import MoveFreeze
from whimbrel.wire.rpc import Peer


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
    assert "--deadline 1.5 s" in record.reason  # that the rounds would miss it; on a busy machine that all would
    assert len(record.rounds) == 1, "nothing but the last look crossed before the freeze"


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Running:
    """Writes all over its memory what no codec makes smaller, 600 pages/s or as many as the test asks for."""
    pages_per_s = getattr(request, "param", 600)
    monkeypatch.setattr(conftest, "MORE_ENV", ("CONTENTS=random", f"DIRTY_PAGES_PER_S={pages_per_s}"))
    running: Running = request.getfixturevalue("running")
    return running


@pytest.mark.thorough
def test_a_deadline_with_room_for_two_rounds_gets_them(writer: Running) -> None:
    """All of it crosses in some 3 s, which leaves too little for as much again, yet enough for what is dirty then."""
    record = moved(writer, contents="random", deadline_ms=7000.0, bandwidth_bps=80e6)
    assert record.strategy == "hybrid"
    first, second, *_, last = record.rounds
    assert len(record.rounds) >= 3, record.reason
    assert first.dirty_pages > second.dirty_pages > last.dirty_pages
    assert re.search(r"[0-9.]+ MB/s are written and [0-9.]+ MB/s cross: ", record.reason)


def test_who_has_much_to_bring_over_is_frozen_when_nobody_works(writer: Running) -> None:
    """It writes, sleeps and writes again. What it writes while that is waited for crosses, and all of it is right."""
    record = moved(writer, contents="random", bandwidth_bps=80e6)
    waits = {phase.name: phase for phase in record.phases if phase.name in ("freeze.moment", "freeze.quiet")}
    assert len(waits) == 2, record.reason
    hold = next(phase for phase in record.phases if phase.name == "freeze.hold")
    assert waits["freeze.moment"].start_ms < hold.start_ms <= waits["freeze.quiet"].start_ms
    assert hold.duration_ms >= waits["freeze.quiet"].duration_ms, "who is held waits as long"


@pytest.mark.parametrize("writer", [3000], indirect=True)
def test_a_deadline_that_rounds_turn_out_to_miss_leaves_the_rest_behind(writer: Running) -> None:
    """The first round tells how fast it writes: others would take too long, and what is dirty would lengthen the
    freeze."""
    record = moved(writer, contents="random", deadline_ms=7000.0, bandwidth_bps=80e6)
    assert len(record.rounds) == 2, record.reason
    assert "that is over 100 ms, so what has not crossed by then follows the resume" in record.reason
    first, last = record.rounds
    assert last.dirty_pages < first.dirty_pages / 4
    assert record.bytes_sent > first.bytes_sent + last.bytes_sent, "the rest came behind"


@pytest.mark.parametrize("writer", [3000], indirect=True)
def test_a_freeze_that_is_due_does_not_begin_before(writer: Running) -> None:
    """A round of this takes some 300 ms, and would not be over in time."""
    record = moved(writer, contents="random", handover_in_ms=5000.0, handover_ms=300.0, bandwidth_bps=80e6)
    freeze = next(phase for phase in record.phases if phase.name == "freeze")
    predicted_ms = float(re.findall(r"freeze predicted ([0-9]+) ms", record.reason)[-1])
    assert freeze.start_ms >= 5000.0 - predicted_ms - 50.0


def test_the_time_of_a_freeze_can_be_moved(running: Running) -> None:
    """As a planner does whose handover is put off, or comes sooner."""
    started = running.lab.controller.start_migration(running.name, EDGES[1], "hybrid", handover_in_ms=60_000.0)
    source = next(node for node in running.lab.controller.nodes() if node.name == EDGES[0])

    async def tell_source(in_ms: float) -> bool:
        async with Peer(source.name, source.host, source.port) as peer:
            return bool(await peer.call(MoveFreeze(id=started.id, in_ms=in_ms)))

    def due_in(in_ms: float) -> bool:
        where = commands.node_namespace(EDGES[0], lab_dir=running.lab.directory)
        return netns.call(where, lambda: asyncio.run(tell_source(in_ms)))

    ready = []

    def tell(progress: Progress) -> None:
        if progress.ready and not ready:
            ready.append(due_in(100.0))

    record = running.lab.controller.follow(started.id, tell)
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    assert ready == [True]
    assert record.total_ms < 40_000.0, "not when it was to be at first"
    assert not due_in(100.0), "it is over"


@pytest.mark.parametrize("writer", [3000], indirect=True)
def test_what_the_handover_does_not_hide_follows_the_resume(writer: Running) -> None:
    """The user is away for 400 ms and would miss nothing until then; what is dirty takes longer."""
    record = moved(writer, contents="random", handover_in_ms=4000.0, handover_ms=400.0, bandwidth_bps=80e6)
    assert record.strategy == "hybrid"
    assert "over the 400 ms of the handover, so what has not crossed by then follows the resume" in record.reason
    assert record.rounds[-1].dirty_pages, "the link was used as long as the user was away"
    in_rounds = sum(one.bytes_sent for one in record.rounds)
    assert record.bytes_sent > in_rounds + (1 << 18), "the rest came behind"


def test_who_writes_more_in_its_last_moments_than_was_predicted_is_not_held_up_by_that(writer: Running) -> None:
    lab = writer.lab
    lab.arm("freeze.stop")
    started = lab.controller.start_migration(writer.name, EDGES[1], "auto", handover_ms=600.0, bandwidth_bps=80e6)
    lab.wait_reached("freeze.stop")
    time.sleep(2.5)  # 6 MB more, which take 600 ms
    lab.disarm()
    record = lab.controller.follow(started.id, lambda _: None)
    assert (record.outcome, record.error, record.strategy) == (Outcome.DONE, "", "hybrid")
    assert float(re.findall(r"freeze predicted ([0-9]+) ms", record.reason)[-1]) < 600.0
    # besides the rounds there are the images, and what the link was measured with: less than 1 MB
    assert record.bytes_sent > sum(one.bytes_sent for one in record.rounds) + (2 << 20), "the rest came behind"
    assert state_is_right(writer, contents="random")


def test_a_budget_that_the_last_pages_would_break_leaves_them_behind(running: Running) -> None:
    record = moved(
        running, max_downtime_ms=60.0, bandwidth_bps=20e6
    )  # what a freeze without pages is predicted to take
    assert record.strategy in ("hybrid", "post-copy")
    assert "follows the resume" in record.reason or "would miss --max-downtime" in record.reason


# Pages by our stream, after the resume, all in the freeze, layers of images, CRIU's page server, shared storage.
WAYS = ("hybrid", "post-copy", "stop-and-copy", "tmpfs", "diskless", "shared")


@pytest.mark.parametrize("strategy", [*WAYS, *thorough(*sorted(known().keys() - set(WAYS)))])
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
