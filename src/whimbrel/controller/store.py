"""The record of migrations, on disk: SQLite, one row each, the record as JSON beside the columns we search
by."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec

from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE migrations (
  id TEXT PRIMARY KEY,
  service TEXT NOT NULL,
  source TEXT NOT NULL,
  destination TEXT NOT NULL,
  outcome TEXT NOT NULL,
  started_unix_s REAL NOT NULL,
  record TEXT NOT NULL
);
CREATE INDEX migrations_by_service ON migrations (service, started_unix_s);
CREATE INDEX migrations_by_outcome ON migrations (outcome);
CREATE INDEX migrations_by_start ON migrations (started_unix_s);
"""


class MigrationStore:
    """Blocking; safe to call from any thread. What `put` returned from survives a power cut."""

    def __init__(self, path: Path) -> None:
        """Open, make if missing. Raises WhimbrelError when the file is no database of ours."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._create(path)
        except (OSError, sqlite3.Error) as error:
            raise WhimbrelError(f"cannot open the database {path}: {error}; check state_dir and its rights") from error

    def _create(self, path: Path) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise WhimbrelError(
                f"the database {path} has schema {version}, this version of Whimbrel writes "
                f"{SCHEMA_VERSION}: "
                "use the version that wrote it, or another state_dir"
            )

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def put(self, record: MigrationRecord) -> None:
        """Insert or replace the record with this id."""
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO migrations VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id,
                    record.service,
                    record.source,
                    record.destination,
                    record.outcome.value,
                    record.started_unix_s,
                    msgspec.json.encode(record).decode(),
                ),
            )

    def get(self, migration_id: str) -> MigrationRecord | None:
        found = self._select("WHERE id = ?", migration_id)
        return found[0] if found else None

    def newest(self, limit: int, service: str = "") -> list[MigrationRecord]:
        """At most `limit` records, the newest first; of one service if named."""
        if service:
            return self._select("WHERE service = ? ORDER BY started_unix_s DESC, id DESC LIMIT ?", service, limit)
        return self._select("ORDER BY started_unix_s DESC, id DESC LIMIT ?", limit)

    def unfinished(self) -> list[MigrationRecord]:
        """Records that were running when they were last written."""
        return self._select("WHERE outcome = ? ORDER BY started_unix_s", Outcome.RUNNING.value)

    def _select(self, condition: str, *values: str | int) -> list[MigrationRecord]:
        with self._lock:
            rows = self._db.execute(f"SELECT record FROM migrations {condition}", values).fetchall()
        return [msgspec.json.decode(row[0], type=MigrationRecord) for row in rows]
