"""`migration cancel` before the commit, and a second migration while one runs."""

from __future__ import annotations

import contextlib

import pytest

from marks import thorough
from tests.migrate.conftest import EDGES, Running
from tests.migrate.disturb import cancel_it, destination_is_clean, disturb, live_record, source_is_whole
from whimbrel.model.errors import Conflict, WhimbrelError
from whimbrel.model.migration import Outcome

SLOW_BPS = 2e6
POINTS = [
    *("preflight", "prepare", "rounds", "freeze.hold", "freeze.dump", "receive.ready"),
    *thorough("incoming.prepare", "receive.start", "freeze.holding", "freeze.stop", "freeze.pages", "freeze.files"),
    *thorough("freeze.copy", "freeze.restore", "receive.pre-resume"),
]


@pytest.mark.parametrize("point", POINTS)
def test_cancel(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: cancel_it(running))
    assert record.outcome is Outcome.CANCELLED
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize("point", ["freeze.quiet", *thorough("freeze.moment")])
def test_cancel_while_a_moment_without_work_is_waited_for(running: Running, point: str) -> None:
    """Over a link on which the last pages would take long."""
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: cancel_it(running), bandwidth_bps=SLOW_BPS)
    assert record.outcome is Outcome.CANCELLED
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize(("strategy", "point"), [("pre-copy", "receive.ready"), ("stop-and-copy", "freeze.dump")])
def test_cancel_of_another_strategy(running: Running, strategy: str, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: cancel_it(running), strategy)
    assert record.outcome is Outcome.CANCELLED
    source_is_whole(running, count)
    destination_is_clean(running)


def test_cancel_twice(running: Running) -> None:
    """The second must not cut the undo of the first short."""
    count, _ = running.user.ask("count")
    controller = running.lab.controller

    def strike() -> None:
        migration = live_record(running).id
        controller.cancel(migration)
        with contextlib.suppress(WhimbrelError):  # it may have ended by now
            controller.cancel(migration)

    assert disturb(running, "freeze.pages", strike).outcome is Outcome.CANCELLED
    source_is_whole(running, count)
    destination_is_clean(running)


def test_a_second_migration_is_refused(running: Running) -> None:
    def strike() -> None:
        with pytest.raises(Conflict):
            running.migrate(EDGES[2])

    assert disturb(running, "rounds", strike).outcome is Outcome.DONE
