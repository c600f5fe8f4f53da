from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from whimbrel.controller.store import MigrationStore
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome, Phase, Round


def record(n: int, service: str = "s", outcome: Outcome = Outcome.DONE) -> MigrationRecord:
    return MigrationRecord(
        id=f"m{n}", service=service, source="a", destination="b", strategy="hybrid", outcome=outcome,
        started_unix_s=float(n), phases=(Phase(name="freeze", start_ms=1.0, duration_ms=2.0),),
        rounds=(Round(n=1, dirty_pages=3, bytes_sent=4, duration_ms=5.0),), state_ok=True,
    )  # fmt: skip


def test_records_survive_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "db"
    store = MigrationStore(path)
    store.put(record(1))
    store.close()
    again = MigrationStore(path)
    assert again.get("m1") == record(1)
    assert again.get("m2") is None
    again.close()


def test_order_limit_service_and_unfinished(tmp_path: Path) -> None:
    store = MigrationStore(tmp_path / "db")
    for n in range(5):
        store.put(record(n, service="even" if n % 2 == 0 else "odd", outcome=Outcome.RUNNING))
    store.put(replace(record(1, "odd"), outcome=Outcome.DONE))
    assert [one.id for one in store.newest(3)] == ["m4", "m3", "m2"]
    assert [one.id for one in store.newest(10, "odd")] == ["m3", "m1"]
    assert [one.id for one in store.unfinished()] == ["m0", "m2", "m3", "m4"]
    store.close()


def test_many_threads_at_once(tmp_path: Path) -> None:
    store = MigrationStore(tmp_path / "db")
    threads = [threading.Thread(target=lambda n=n: store.put(record(n))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.newest(100)) == 20
    store.close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database at all, but long enough to be read as one" * 100)
    with pytest.raises(WhimbrelError, match="cannot open the database"):
        MigrationStore(tmp_path / "db")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(WhimbrelError, match="schema 99"):
        MigrationStore(tmp_path / "db")
