"""What is at stake after the commit of a post-copy, and what is done about it."""

from __future__ import annotations

from tests.migrate.conftest import Running
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    Attempt,
    goes_on,
    journal_step,
    kill_all,
    link_of,
    open_streams,
    received_bytes,
    receiver_pids,
    runs_only_at,
    until,
)
from whimbrel.model.migration import Outcome

SLOW_BPS = 40e6  # the rest of 24 MB takes some seconds
SOME_BYTES = 1 << 20


def pages_follow(running: Running) -> None:
    """Return when the service runs at the destination and some of its pages, not all, have come after it."""
    until(lambda: journal_step(running.lab, SOURCE) == "committed", "it does not commit")
    before = received_bytes(running.lab, DESTINATION)
    until(lambda: received_bytes(running.lab, DESTINATION) > before + SOME_BYTES, "no pages follow")
    assert journal_step(running.lab, SOURCE) == "committed", "too late: all pages are there"


def test_a_link_cut_while_pages_follow_is_taken_up_again(running: Running) -> None:
    count, _ = running.user.ask("count")
    with link_of(running.lab) as link:
        attempt = Attempt(running, "post-copy", SLOW_BPS)
        pages_follow(running)
        link.cut()
        for node in (SOURCE, DESTINATION):
            until(lambda node=node: not open_streams(running.lab, node), f"{node} does not take the link for dead")
        link.mend()
        record = attempt.wait()
    assert not record.error, record.error
    assert record.outcome is Outcome.DONE
    runs_only_at(running, DESTINATION)
    goes_on(running, count)


def test_a_destination_that_dies_before_it_has_all_pages_leaves_the_source(running: Running) -> None:
    attempt = Attempt(running, "post-copy", SLOW_BPS)
    pages_follow(running)
    kill_all(receiver_pids(running.lab, DESTINATION))
    record = attempt.wait()
    assert record.outcome is Outcome.FAILED
    assert "it runs on at" in record.error
    runs_only_at(running, SOURCE)
