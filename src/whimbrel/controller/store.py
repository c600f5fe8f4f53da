"""The record of migrations: one row each, the record as JSON beside the columns we search by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec
import sqlalchemy as sa

from whimbrel.controller.database import READS, cause, open_database, shown
from whimbrel.model.errors import BadInput, Unreachable
from whimbrel.model.migration import MigrationRecord, Outcome

# As the last step of `schema/versions` leaves it.
_MIGRATIONS = sa.table(
    "migrations",
    *(sa.column(name) for name in ("id", "service", "source", "destination", "outcome", "started_unix_s", "record")),
)
_NEWEST_FIRST = (_MIGRATIONS.c.started_unix_s.desc(), _MIGRATIONS.c.id.desc())


class Database:
    """Transactions of the region's database, for all that keep something in it."""

    def __init__(self, url: sa.URL) -> None:
        """Open, make if missing. Raises WhimbrelError when it is no database of ours."""
        self._name = shown(url)
        self._engine = open_database(url)
        self._reader = self._engine.execution_options(**{READS: True})

    def close(self) -> None:
        self._engine.dispose()

    def read(self) -> AbstractContextManager[sa.Connection]:
        return self._transaction(self._reader)

    def write(self) -> AbstractContextManager[sa.Connection]:
        """What was done in it survives a power cut, once the block has ended."""
        return self._transaction(self._engine)

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except sa.exc.DataError as error:  # PostgreSQL has no NUL in its texts
            raise BadInput(f"the database has no place for that: {cause(error)}") from error
        except sa.exc.SQLAlchemyError as error:
            raise Unreachable(f"the database {self._name} does not answer: {cause(error)}") from error


def older_than(table: sa.TableClause, time: str, row_id: str) -> sa.ColumnElement[bool]:
    """What comes after this row in a list with the newest first, by `time` and then by `id`."""
    of_it = sa.select(table.c[time]).where(table.c.id == row_id).scalar_subquery()
    return (table.c[time] < of_it) | ((table.c[time] == of_it) & (table.c.id < row_id))


class MigrationStore:
    """Blocking; safe to call from any thread. What `put` returned from survives a power cut."""

    def __init__(self, url: sa.URL) -> None:
        """Open, make if missing. Raises WhimbrelError when it is no database of ours."""
        self.database = Database(url)

    def close(self) -> None:
        self.database.close()

    def put(self, record: MigrationRecord) -> None:
        """Insert or replace the record with this id. Raises Unreachable, as all here do, when the database is away."""
        row = {
            "id": record.id,
            "service": record.service,
            "source": record.source,
            "destination": record.destination,
            "outcome": record.outcome.value,
            "started_unix_s": record.started_unix_s,
            "record": msgspec.json.encode(record).decode(),
        }
        with self.database.write() as connection:
            connection.execute(sa.delete(_MIGRATIONS).where(_MIGRATIONS.c.id == record.id))
            connection.execute(sa.insert(_MIGRATIONS).values(row))

    def get(self, migration_id: str) -> MigrationRecord | None:
        found = self._select(_records().where(_MIGRATIONS.c.id == migration_id))
        return found[0] if found else None

    def newest(self, limit: int, service: str = "", before: str = "") -> list[MigrationRecord]:
        """At most `limit` records, the newest first; of one service if named; `before`: those that come after the one
        of this id."""
        wanted = _records().where(_MIGRATIONS.c.service == service) if service else _records()
        if before:
            wanted = wanted.where(older_than(_MIGRATIONS, "started_unix_s", before))
        return self._select(wanted.order_by(*_NEWEST_FIRST).limit(limit))

    def unfinished(self) -> list[MigrationRecord]:
        """Records that were running when they were last written."""
        running = _records().where(_MIGRATIONS.c.outcome == Outcome.RUNNING.value)
        return self._select(running.order_by(_MIGRATIONS.c.started_unix_s))

    def _select(self, statement: sa.Select[Any]) -> list[MigrationRecord]:
        with self.database.read() as connection:
            rows = connection.execute(statement).scalars().all()
        return [msgspec.json.decode(row, type=MigrationRecord) for row in rows]


def _records() -> sa.Select[Any]:
    return sa.select(_MIGRATIONS.c.record)
