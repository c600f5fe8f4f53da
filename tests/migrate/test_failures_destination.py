"""The destination fails before the commit: the source runs on, and nothing stays at the destination."""

from __future__ import annotations

import os
import signal

import pytest

from marks import thorough
from tests.migrate.conftest import Running
from tests.migrate.disturb import (
    DESTINATION,
    criu_pids,
    destination_is_clean,
    disturb,
    goes_on,
    held_at,
    is_alive,
    kill_agent,
    kill_all,
    receiver_pids,
    runs_only_at,
    source_is_whole,
    until,
)
from whimbrel.model.migration import Outcome

# In each phase each victim is struck once; the points that one leaves out another is struck at.
AGENT_POINTS = [
    *("incoming.prepare", "rounds", "freeze.pages", "receive.ready"),
    *thorough("prepare", "freeze.hold", "freeze.stop", "freeze.dump", "freeze.files", "freeze.copy", "freeze.restore"),
    *thorough("receive.setup-namespaces", "receive.pre-resume", "receive.post-restore"),
]
CRIU_POINTS = [
    *("prepare.ready", "rounds", "freeze.dump", "freeze.pages", "receive.setup-namespaces", "receive.pre-resume"),
    *thorough("freeze.hold", "freeze.stop", "freeze.files", "freeze.copy", "freeze.restore"),
    *thorough("receive.post-restore", "receive.ready"),
]
RECEIVER_POINTS = ["freeze.pages", "receive.ready", *thorough("rounds", "receive.pre-resume")]


@pytest.mark.parametrize("point", AGENT_POINTS)
def test_destination_agent_killed(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    lab = running.lab

    def strike() -> None:
        kill_agent(lab, DESTINATION)
        if point.startswith("receive."):  # it could still commit, if it went on before it noticed
            until(lambda: not receiver_pids(lab, DESTINATION), "the receiving process outlives its agent")

    record = disturb(running, point, strike)
    assert record.outcome is Outcome.ROLLED_BACK
    assert record.error
    source_is_whole(running, count)
    destination_is_clean(running)


def test_destination_agent_stopped(running: Running) -> None:
    """SIGTERM: it takes no calls any more, but stays until what is coming has come."""
    count, _ = running.user.ask("count")
    lab = running.lab
    agent = lab.agent_pid(DESTINATION)
    with held_at(running, "freeze.pages") as attempt:
        os.kill(agent, signal.SIGTERM)
        lab.disarm()
        until(lambda: not is_alive(agent), "the agent does not end")
        lab.restart_agent(DESTINATION)
    assert attempt.wait().outcome is Outcome.DONE
    goes_on(running, count)
    runs_only_at(running, DESTINATION)


@pytest.mark.parametrize("point", CRIU_POINTS)
def test_criu_killed_at_the_destination(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_all(criu_pids(running.lab, DESTINATION)))
    assert record.outcome is Outcome.ROLLED_BACK
    assert "CRIU" in record.error
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize("point", RECEIVER_POINTS)
def test_receiving_process_killed(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_all(receiver_pids(running.lab, DESTINATION)))
    assert record.outcome is Outcome.ROLLED_BACK
    assert record.error
    source_is_whole(running, count)
    destination_is_clean(running)
