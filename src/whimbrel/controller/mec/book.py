"""What the MEC interfaces keep in the region's database, so that a restarted controller goes on with it."""

from __future__ import annotations

import sqlalchemy as sa

from whimbrel.controller.store import Database

_ENTRIES = sa.table("mec_entries", *(sa.column(name) for name in ("id", "kind", "record")))


class MecBook:
    """Rows of JSON by kind and id. Blocking; safe to call from any thread. Raises Unreachable when the database is
    away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self, kind: str) -> list[str]:
        wanted = sa.select(_ENTRIES.c.record).where(_ENTRIES.c.kind == kind).order_by(_ENTRIES.c.id)
        with self._database.read() as connection:
            return list(connection.execute(wanted).scalars().all())

    def put(self, kind: str, entry_id: str, record: str) -> None:
        with self._database.write() as connection:
            connection.execute(sa.delete(_ENTRIES).where(_which(kind, entry_id)))
            connection.execute(sa.insert(_ENTRIES).values(id=entry_id, kind=kind, record=record))

    def remove(self, kind: str, entry_id: str) -> None:
        with self._database.write() as connection:
            connection.execute(sa.delete(_ENTRIES).where(_which(kind, entry_id)))


def _which(kind: str, entry_id: str) -> sa.ColumnElement[bool]:
    return (_ENTRIES.c.kind == kind) & (_ENTRIES.c.id == entry_id)
