"""The underlay between the two edges dies without a word before the commit."""

from __future__ import annotations

import pytest

from tests.migrate.conftest import Running
from tests.migrate.disturb import destination_is_clean, disturb, link_of, source_is_whole
from whimbrel.model.migration import Outcome

POINTS = [
    "prepare.ready",
    "rounds",
    "freeze.hold",
    "freeze.stop",
    "freeze.dump",
    "freeze.pages",
    "freeze.restore",
    "receive.post-restore",
    "receive.pre-resume",
]


@pytest.mark.parametrize("point", POINTS)
def test_link_cut(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    with link_of(running.lab) as link:
        record = disturb(running, point, link.cut)
        assert record.outcome is Outcome.ROLLED_BACK
        source_is_whole(running, count)
    destination_is_clean(running)
