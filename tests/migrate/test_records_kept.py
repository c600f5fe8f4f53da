"""The figures of a migration outlive the controller that asked for it and the agent that carried it out."""

from __future__ import annotations

import pytest

from tests.migrate.conftest import Running
from tests.migrate.disturb import SOURCE, held_at, kill_agent, live_record, record_of_the_last, until
from whimbrel.model.migration import MigrationRecord, Outcome


def is_complete(record: MigrationRecord) -> bool:
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    assert {"preflight", "prepare", "rounds", "freeze", "finish"} <= {phase.name for phase in record.phases}
    return 0 < record.freeze_ms < record.total_ms and record.bytes_sent > 0 and len(record.rounds) >= 2


def test_controller_restarted_during_a_migration(running: Running) -> None:
    lab = running.lab
    with held_at(running, "freeze.pages"):
        before = live_record(running)
        lab.kill_controller()
        lab.start_controller()
        assert live_record(running).id == before.id
    record = record_of_the_last(running)
    assert record.id == before.id
    assert is_complete(record)


@pytest.mark.thorough
def test_controller_away_until_the_agent_was_restarted_too(running: Running) -> None:
    lab = running.lab
    with held_at(running, "rounds"):
        migration = live_record(running).id
        lab.kill_controller()
    kept = lab.state_dir(SOURCE) / "migrations.json"
    until(lambda: kept.exists() and migration in kept.read_text(), "the source's agent keeps no record")
    kill_agent(lab, SOURCE)
    lab.start_agent(SOURCE)
    lab.start_controller()
    record = record_of_the_last(running)
    assert record.id == migration
    assert is_complete(record)
