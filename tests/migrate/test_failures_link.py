"""The underlay between the two edges dies without a word before the commit."""

from __future__ import annotations

import pytest

from marks import thorough
from tests.migrate.conftest import Running
from tests.migrate.disturb import SOURCE, destination_is_clean, held_at, journal_step, link_of, source_is_whole, until
from whimbrel.model.migration import Outcome

POINTS = [
    *("prepare.ready", "rounds", "freeze.copy", "receive.post-restore"),
    *thorough("freeze.hold", "freeze.holding", "freeze.stop", "freeze.dump", "freeze.pages", "freeze.files"),
    *thorough("freeze.restore", "receive.pre-resume"),
]


@pytest.mark.parametrize("point", POINTS)
def test_link_cut(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    lab = running.lab
    with link_of(lab) as link:
        with held_at(running, point) as attempt:
            link.cut()
            lab.disarm()
            until(lambda: not journal_step(lab, SOURCE), "the source does not give up")
            source_is_whole(running, count)  # while the link is still dead
            link.mend()
        assert attempt.wait().outcome is Outcome.ROLLED_BACK
    destination_is_clean(running)
