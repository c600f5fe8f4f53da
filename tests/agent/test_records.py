"""The records that an agent keeps of its last migrations."""

from __future__ import annotations

from pathlib import Path

from whimbrel.agent.records import RecordStore
from whimbrel.model.migration import MigrationRecord, Outcome


def record(number: int, outcome: Outcome = Outcome.DONE) -> MigrationRecord:
    return MigrationRecord(
        id=f"m{number}", service="svc", source="a", destination="b", strategy="hybrid", outcome=outcome, freeze_ms=4.5
    )


def test_records_survive_a_restart_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "migrations.json"
    store = RecordStore(path, kept=3)
    for number in range(5):
        store.put(record(number))
    store.put(record(3, Outcome.FAILED))
    again = RecordStore(path, kept=3)
    assert [again.get(f"m{number}") for number in range(5)] == [
        None, None, record(2), record(3, Outcome.FAILED), record(4)
    ]  # fmt: skip
    again.put(record(5))
    assert RecordStore(path, kept=3).get("m2") is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["migrations.json"]


def test_a_file_that_cannot_be_read_keeps_no_agent_down(tmp_path: Path) -> None:
    path = tmp_path / "migrations.json"
    path.write_bytes(b'[{"id": 7}]')
    store = RecordStore(path)
    assert store.get("m1") is None
    store.put(record(1))
    assert RecordStore(path).get("m1") == record(1)
