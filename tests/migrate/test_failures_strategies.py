"""Failures before the commit under strategies that stage images, share storage, or send all in the freeze."""

from __future__ import annotations

import pytest

from marks import thorough
from tests.migrate.conftest import Running
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    criu_pids,
    destination_is_clean,
    disturb,
    goes_on,
    held_at,
    journal_step,
    kill_agent,
    kill_all,
    link_of,
    runs_only_at,
    source_is_whole,
    until,
)
from whimbrel.model.migration import Outcome

# Each strategy meets each victim once, in the rounds or in the freeze: what differs lies in the ways, not in the pairs.
# By default each victim meets one of them or two.
ROUNDS, FREEZE = "rounds", "freeze.pages"


def at(default: str, tmpfs: str, shared: str) -> pytest.MarkDecorator:
    cases = [("tmpfs", tmpfs), ("shared", shared), ("stop-and-copy", FREEZE), ("pre-copy", FREEZE)]
    others = [case for case in cases if case[0] not in default.split()]
    return pytest.mark.parametrize(
        ("strategy", "point"), [*(case for case in cases if case not in others), *thorough(*others)]
    )


@at("shared", tmpfs=FREEZE, shared=ROUNDS)
def test_destination_agent_killed(running: Running, strategy: str, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_agent(running.lab, DESTINATION), strategy)
    assert record.outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


@at("tmpfs", tmpfs=ROUNDS, shared=FREEZE)
def test_criu_killed_at_the_destination(running: Running, strategy: str, point: str) -> None:
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_all(criu_pids(running.lab, DESTINATION)), strategy)
    assert record.outcome is Outcome.ROLLED_BACK
    source_is_whole(running, count)
    destination_is_clean(running)


@at("shared pre-copy", tmpfs=FREEZE, shared=ROUNDS)
def test_criu_killed_at_the_source(running: Running, strategy: str, point: str) -> None:
    """In the rounds all is undone; once its dump is whole it is not missed."""
    count, _ = running.user.ask("count")
    record = disturb(running, point, lambda: kill_all(criu_pids(running.lab, SOURCE)), strategy)
    if point == "rounds":
        assert record.outcome is Outcome.ROLLED_BACK
        source_is_whole(running, count)
        destination_is_clean(running)
    else:
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        goes_on(running, count)
        runs_only_at(running, DESTINATION)


@at("tmpfs stop-and-copy", tmpfs=FREEZE, shared=FREEZE)
def test_link_cut(running: Running, strategy: str, point: str) -> None:
    count, _ = running.user.ask("count")
    lab = running.lab
    with link_of(lab) as link:
        with held_at(running, point, strategy) as attempt:
            link.cut()
            lab.disarm()
            until(lambda: not journal_step(lab, SOURCE), "the source does not give up", 30)
            source_is_whole(running, count)  # while the link is still dead
            link.mend()
        assert attempt.wait().outcome is Outcome.ROLLED_BACK
    destination_is_clean(running)
