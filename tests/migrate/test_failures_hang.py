"""Somebody hangs (SIGSTOP: he neither works nor ends, and the link stays whole): the others end it. The service ends up
running in exactly one place, with its connections."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from marks import thorough
from tests.migrate.conftest import Running
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    criu_pids,
    destination_is_clean,
    goes_on,
    held_at,
    is_frozen,
    journal_step,
    kill_agent,
    receiver_pids,
    runs_only_at,
    source_is_whole,
    until,
)
from whimbrel.model.migration import MigrationRecord, Outcome

VICTIMS: dict[str, Callable[[Running], list[int]]] = {
    "the receiving process": lambda running: receiver_pids(running.lab, DESTINATION),
    "CRIU at the destination": lambda running: criu_pids(running.lab, DESTINATION),
    "CRIU at the source": lambda running: criu_pids(running.lab, SOURCE),
}


def stop(running: Running, victim: str) -> None:
    pids = VICTIMS[victim](running)
    assert pids, "there is nobody to stop"
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def hang(running: Running, point: str, victim: str, strategy: str = "hybrid") -> MigrationRecord:
    with held_at(running, point, strategy) as attempt:
        stop(running, victim)
    return attempt.wait()


# --- in the freeze --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("point", "victim", "strategy"),
    [
        ("freeze.pages", "the receiving process", "tmpfs"),
        *thorough(
            ("freeze.dump", "CRIU at the source", "hybrid"),
            ("receive.post-restore", "CRIU at the destination", "hybrid"),
        ),
    ],
)
def test_who_hangs_in_the_freeze_does_not_keep_it_up(running: Running, point: str, victim: str, strategy: str) -> None:
    count, _ = running.user.ask("count")
    record = hang(running, point, victim, strategy)
    assert record.outcome is Outcome.ROLLED_BACK
    assert record.error
    source_is_whole(running, count)
    destination_is_clean(running)


# --- after GO -------------------------------------------------------------------------------------------------
@pytest.mark.thorough
def test_a_receiving_process_that_hangs_before_it_hears_go(running: Running) -> None:
    """The source may not decide any more. The agent there does: it ends the process, and then says so."""
    count, _ = running.user.ask("count")
    assert hang(running, "commit", "the receiving process").outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


def test_a_receiving_process_that_hangs_after_the_commit(running: Running) -> None:
    """Pages are lacking that it had: as if it had died."""
    count, _ = running.user.ask("count")
    record = hang(running, "receive.committed", "the receiving process")
    assert record.outcome is Outcome.FAILED
    assert "as it was at the freeze" in record.error
    source_is_whole(running, count)
    destination_is_clean(running)
    runs_only_at(running, SOURCE)


@pytest.mark.thorough
def test_a_receiving_process_that_hangs_when_all_pages_are_there(running: Running) -> None:
    """The agent ends it, and does what it had still to do."""
    count, _ = running.user.ask("count")
    record = hang(running, "receive.committed", "the receiving process", "pre-copy")
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    goes_on(running, count)
    runs_only_at(running, DESTINATION)
    assert running.lab.leftovers(SOURCE, running.name) == []


@pytest.mark.parametrize("victim", ["CRIU at the source", *thorough("CRIU at the destination")])
def test_a_criu_that_hangs_after_go_is_not_needed(running: Running, victim: str) -> None:
    count, _ = running.user.ask("count")
    record = hang(running, "receive.committed", victim)
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    goes_on(running, count)
    runs_only_at(running, DESTINATION)
    assert running.lab.leftovers(SOURCE, running.name) == []


@pytest.mark.thorough
def test_a_receiving_process_that_hangs_and_outlives_its_agent(running: Running) -> None:
    """The next agent finds it and ends it."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with held_at(running, "receive.fill") as attempt:
        until(lambda: journal_step(lab, SOURCE) == "committed", "the source does not hear that it runs")
        stop(running, "the receiving process")
        kill_agent(lab, DESTINATION)
        lab.disarm()
        lab.start_agent(DESTINATION)  # it is not up before it has settled this
    assert attempt.wait().outcome is Outcome.FAILED
    source_is_whole(running, count)
    destination_is_clean(running)


def test_an_agent_that_hangs_after_go_is_waited_for(running: Running) -> None:
    """And the packets with it. Nobody else may say what has become of the service."""
    count, _ = running.user.ask("count")
    lab = running.lab
    agent = lab.agent_pid(DESTINATION)
    with held_at(running, "commit") as attempt:
        stop(running, "the receiving process")
        os.kill(agent, signal.SIGSTOP)
        try:
            lab.disarm()
            until(lambda: attempt.told("waiting for the destination's word"), "the source does not ask")
            assert is_frozen(SOURCE, running.name)
        finally:
            os.kill(agent, signal.SIGCONT)
    assert attempt.wait().outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)
