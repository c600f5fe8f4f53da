"""What is at stake after the commit of a post-copy, and what is done about it."""

from __future__ import annotations

from tests.migrate.conftest import Running
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    Attempt,
    destination_is_clean,
    goes_on,
    journal_step,
    kill_agent,
    kill_all,
    link_of,
    open_streams,
    received_bytes,
    receiver_pids,
    record_of_the_last,
    runs_only_at,
    until,
)
from whimbrel.model.migration import Outcome

SLOW_BPS = 60e6  # the rest of 24 MB takes some seconds
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


def test_a_source_that_dies_before_all_pages_have_left_is_not_waited_for_long(running: Running) -> None:
    """Its end is told by its machine, so that nobody takes it for a cut of the link, which is waited for for a minute.
    The service cannot go on without those pages: it runs on at the source when an agent is there again."""
    lab = running.lab
    attempt = Attempt(running, "post-copy", SLOW_BPS)
    until(lambda: journal_step(lab, SOURCE) == "committed", "it does not commit")
    kill_agent(lab, SOURCE)
    until(lambda: not receiver_pids(lab, DESTINATION), "the destination waits for the dead", 30)
    lab.restart_agent(SOURCE)
    attempt.join()
    record = record_of_the_last(running)
    assert record.outcome is Outcome.FAILED
    assert "it runs on at" in record.error
    runs_only_at(running, SOURCE)
    assert running.user.echo(b"here") == b"here"
    destination_is_clean(running)
