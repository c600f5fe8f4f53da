"""The records of the last migrations that went out from this node: a file in its state directory.

The controller asks for them when it lost sight of a migration: its own restart, ours, or a broken connection.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import structlog

from whimbrel.model.migration import MigrationRecord

KEPT = 100

log = structlog.get_logger()


class RecordStore:
    """At most `kept` records, the oldest go first. Safe to call from any thread; `put` writes to disk."""

    def __init__(self, path: Path, *, kept: int = KEPT) -> None:
        self._path, self._kept = path, kept
        self._lock = threading.Lock()
        self._records: dict[str, MigrationRecord] = {}
        try:
            found = msgspec.json.decode(path.read_bytes(), type=list[MigrationRecord])
        except FileNotFoundError:
            return
        except (msgspec.DecodeError, OSError) as error:
            log.warning(
                "the records of earlier migrations cannot be read and begin anew", file=str(path), error=str(error)
            )
            return
        self._records = {record.id: record for record in found[-kept:]}

    def get(self, migration: str) -> MigrationRecord | None:
        return self._records.get(migration)

    def all(self) -> tuple[MigrationRecord, ...]:
        """The oldest first."""
        with self._lock:
            return tuple(self._records.values())

    def put(self, record: MigrationRecord) -> None:
        """Keep it, in the place of an earlier one with its id. Raises OSError when the disk does not take it; it is
        known until the agent ends all the same."""
        with self._lock:
            self._records.pop(record.id, None)
            self._records[record.id] = record
            while len(self._records) > self._kept:
                del self._records[next(iter(self._records))]
            replacement = self._path.with_suffix(".new")
            with replacement.open("wb") as file:
                file.write(msgspec.json.encode(list(self._records.values())))
                file.flush()
                os.fsync(file.fileno())
            replacement.replace(self._path)
