"""The destination never answers again after GO: the source waits, frozen, until an operator says who runs."""

from __future__ import annotations

import os
import signal

import pytest

from marks import thorough
from tests.migrate.conftest import Running
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    destination_is_clean,
    goes_on,
    held_at,
    is_frozen,
    kill_agent,
    link_of,
    live_record,
    receiver_pids,
    record_of_the_last,
    runs_only_at,
    source_is_whole,
    until,
)
from whimbrel.migrate.words import beside_words
from whimbrel.model.errors import Conflict
from whimbrel.model.migration import Outcome


@pytest.mark.parametrize("restarted", [False, *thorough(True)], ids=["the same agent", "a restarted agent"])
def test_a_destination_that_never_returns(running: Running, restarted: bool) -> None:
    """It died as a machine does, and nobody knows whether it had heard GO."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with held_at(running, "commit") as attempt:
        migration = live_record(running).id
        with pytest.raises(Conflict, match="does not wait for an answer"):
            lab.controller.resolve(migration, runs_at="source")
        pids = [lab.agent_pid(DESTINATION), *receiver_pids(lab, DESTINATION)]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # both at once, so that neither says anything of the other
            for pid in pids:
                os.kill(pid, number)
        lab.disarm()
        until(lambda: attempt.told("waiting for the destination's word"), "the source does not ask")
        if restarted:
            kill_agent(lab, SOURCE)
            lab.restart_agent(SOURCE)
            until(lambda: resolved(running, migration), "the restarted agent does not ask")
        else:
            assert is_frozen(SOURCE, running.name)
            lab.controller.resolve(migration, runs_at="source")
    record = record_of_the_last(running)
    assert record.outcome is Outcome.FAILED
    assert "it runs on at" in record.error
    assert "as it was at the freeze" in record.error
    source_is_whole(running, count)
    destination_is_clean(running)
    runs_only_at(running, SOURCE)


def resolved(running: Running, migration: str) -> bool:
    try:
        running.lab.controller.resolve(migration, runs_at="source")
    except Conflict:
        return False
    return True


def test_a_destination_that_serves_its_users_and_cannot_say_so(running: Running) -> None:
    """Only the way between the two is gone: the operator sees it run there, and the frozen one is not needed."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with link_of(lab) as link:
        with held_at(running, "receive.committed") as attempt:
            link.cut()
            lab.disarm()
            count = goes_on(running, count)
            until(lambda: attempt.told("waiting for the destination's word"), "the source does not ask")
            lab.controller.resolve(live_record(running).id, runs_at="destination")
        record = attempt.wait()
        assert record.outcome is Outcome.DONE
        assert "an operator said that it runs there" in record.reason
        count = goes_on(running, count)
        assert lab.leftovers(SOURCE, running.name) == []
    runs_only_at(running, DESTINATION)
    kill_agent(lab, DESTINATION)  # nobody has told it the end: its restart does away with what it kept for that
    lab.restart_agent(DESTINATION)
    goes_on(running, count)
    assert not [words for words in (lab.state_dir(DESTINATION) / "run").glob("incoming-*") if beside_words(words)]
