"""CRIU and the agent fail at the source before the commit."""

from __future__ import annotations

import os
import signal

import pytest

from marks import thorough
from tests.migrate.conftest import Running, programs
from tests.migrate.disturb import (
    SOURCE,
    criu_pids,
    destination_is_clean,
    disturb,
    goes_on,
    held_at,
    is_alive,
    kill_agent,
    kill_all,
    record_of_the_last,
    source_is_whole,
    until,
)
from whimbrel.model.migration import Outcome

SLOW_BPS = 2e6  # pages would take long in the freeze: a moment without work is waited for


@pytest.mark.parametrize("point", ["prepare.ready", "rounds", "freeze.dump", *thorough("freeze.hold", "freeze.stop")])
def test_criu_killed_at_the_source(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_all(criu_pids(running.lab, SOURCE)))
    assert record.outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize("point", ["freeze.moment", *thorough("freeze.quiet")])
def test_criu_killed_while_a_moment_without_work_is_waited_for(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_all(criu_pids(running.lab, SOURCE)), bandwidth_bps=SLOW_BPS)
    assert record.outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize("point", ["freeze.pages", *thorough("freeze.copy", "freeze.restore")])
def test_criu_at_the_source_is_not_missed_once_its_dump_is_whole(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_all(criu_pids(running.lab, SOURCE)))
    assert record.outcome is Outcome.DONE
    goes_on(running, count)


@pytest.mark.parametrize("point", ["freeze.files", *thorough("rounds")])
def test_the_process_that_sends_the_files_killed(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_all(programs(running.lab, SOURCE, "sendfiles")))
    assert record.outcome is Outcome.ROLLED_BACK
    assert "sends the files" in record.error
    source_is_whole(running, count)
    destination_is_clean(running)


def test_source_agent_killed(running: Running) -> None:
    """The service stands still until the next agent lets it run: the latch holds whoever dies."""
    count, _ = running.user.ask("count")
    lab = running.lab
    with held_at(running, "freeze.pages"):
        kill_agent(lab, SOURCE)
        lab.disarm()
        lab.restart_agent(SOURCE)
    record = record_of_the_last(running)
    assert record.outcome is Outcome.ROLLED_BACK
    assert SOURCE in record.error
    assert record.rounds, "what the agent had written down before is known"
    source_is_whole(running, count)
    destination_is_clean(running)


def test_source_agent_stopped(running: Running) -> None:
    """SIGTERM: it undoes the migration before it ends."""
    count, _ = running.user.ask("count")
    lab = running.lab
    agent = lab.agent_pid(SOURCE)
    with held_at(running, "freeze.pages"):
        os.kill(agent, signal.SIGTERM)
        count, _ = running.user.ask("count")
        lab.disarm()
        until(lambda: not is_alive(agent), "the agent does not end")
        lab.restart_agent(SOURCE)
    record = record_of_the_last(running)
    assert record.outcome is Outcome.ROLLED_BACK
    assert SOURCE in record.error
    source_is_whole(running, count)
    destination_is_clean(running)
