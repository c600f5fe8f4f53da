"""On a kernel with soft-dirty bits: the papers' own mechanism, CRIU's pre-dump with parent images; and our holes."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.migrate.conftest import EDGES, Running
from tests.migrate.test_strategies import state_is_right
from whimbrel.checkpoint.images import PE_PARENT, pagemap_pids, read_pagemap
from whimbrel.memory import softdirty
from whimbrel.model.migration import MigrationRecord, Outcome

pytestmark = pytest.mark.inside


def move_and_look(running: Running, strategy: str) -> MigrationRecord:
    """Migrate and see that state, memory and connections have come along."""
    count, writes = running.user.ask("count")
    record = running.migrate(EDGES[1], strategy)
    assert not record.error, record.error
    assert record.outcome is Outcome.DONE
    next_count, next_writes = running.user.ask("count")
    assert (next_count, next_writes > writes) == (count + 1, True)
    assert running.user.echo(b"still there") == b"still there"
    assert state_is_right(running)
    print(f"{strategy}: {record.reason}; rounds {[(r.dirty_pages, r.bytes_sent) for r in record.rounds]}; "
          f"freeze {record.freeze_ms:.0f} ms, total {record.total_ms:.0f} ms")  # fmt: skip
    return record


def test_this_kernel_tracks_soft_dirty_bits() -> None:
    assert softdirty.has_soft_dirty()


@pytest.mark.parametrize("strategy", ["tmpfs", "shared"])
def test_criu_dumps_ahead_by_itself(running: Running, strategy: str) -> None:
    record = move_and_look(running, strategy)
    assert "CRIU's own pre-dump" in record.reason
    first, second, last = record.rounds
    assert first.dirty_pages > running.memory_mb * 200
    assert 0 < second.dirty_pages < first.dirty_pages / 2, "a second dump holds what was written since the first"
    assert 0 < last.dirty_pages < first.dirty_pages / 2, "and so does the dump in the freeze"


def test_diskless_feeds_the_page_server_from_our_tracker(running: Running) -> None:
    """CRIU holds no parent here that its own dumps could compare with, so the tracker stays."""
    record = move_and_look(running, "diskless")
    assert "our write-protect tracker feeds CRIU's page server" in record.reason
    assert 0 < record.rounds[1].dirty_pages < record.rounds[0].dirty_pages / 2


def test_hybrid_leaves_holes_for_all_that_the_tracker_carries(running: Running) -> None:
    """CRIU leaves a hole only for a page without a soft-dirty bit, and the service has written all of them."""
    running.lab.arm("freeze.pages")  # CRIU has written its images, the service stands still
    results: list[MigrationRecord] = []
    mover = threading.Thread(target=lambda: results.append(move_and_look(running, "hybrid")))
    mover.start()
    try:
        running.lab.wait_reached("freeze.pages", timeout_s=120)
        images = running.lab.state_dir(EDGES[0]) / "run" / f"dump-{running.name}" / "images"
        maps = [read_pagemap(images, ns_pid) for ns_pid in pagemap_pids(images)]
    finally:
        running.lab.disarm()
        mover.join()
    assert len(results) == 1, "the migration failed: see the thread's error"
    sizes = np.concatenate([(pages.ranges[:, 1] - pages.ranges[:, 0]).astype(np.int64) for pages in maps])
    holes = np.concatenate([pages.flags == PE_PARENT for pages in maps])
    assert sizes[holes].sum() > running.memory_mb << 20
    assert sizes[~holes].sum() < sizes[holes].sum() / 20
