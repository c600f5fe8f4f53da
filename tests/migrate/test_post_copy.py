"""What is at stake after the commit of a post-copy, and what is done about it."""

from __future__ import annotations

import time

from tests.migrate.conftest import Running
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    Attempt,
    goes_on,
    journal_step,
    kill_all,
    link_of,
    receiver_pids,
    runs_only_at,
    until,
)
from whimbrel.model.migration import Outcome

SLOW_BPS = 40e6  # the rest of 24 MB takes some seconds


def test_a_link_cut_while_pages_follow_is_taken_up_again(running: Running) -> None:
    count, _ = running.user.ask("count")
    with link_of(running.lab) as link:
        attempt = Attempt(running, "post-copy", SLOW_BPS)
        until(lambda: journal_step(running.lab, SOURCE) == "committed", "it does not commit")
        time.sleep(0.3)
        link.cut()
        time.sleep(4.0)  # longer than either side waits before it takes the link for dead
        link.mend()
        record = attempt.wait()
    assert not record.error, record.error
    assert record.outcome is Outcome.DONE
    runs_only_at(running, DESTINATION)
    goes_on(running, count)


def test_a_destination_that_dies_before_it_has_all_pages_leaves_the_source(running: Running) -> None:
    attempt = Attempt(running, "post-copy", SLOW_BPS)
    until(lambda: journal_step(running.lab, SOURCE) == "committed", "it does not commit")
    time.sleep(0.3)
    kill_all(receiver_pids(running.lab, DESTINATION))
    record = attempt.wait()
    assert record.outcome is Outcome.FAILED
    assert "it runs on at" in record.error
    runs_only_at(running, SOURCE)
