"""What planning keeps in the region's database: rows of JSON beside the columns that are searched by."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from whimbrel.controller.store import Database, older_than
from whimbrel.model.application import Application, Session
from whimbrel.model.decision import Decision, DecisionState, PlannerSetting

T = TypeVar("T")


def _table(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *(sa.column(column) for column in columns))


_APPLICATIONS = _table("applications", "name", "record")
_SESSIONS = _table("sessions", "user_name", "record")
_DECISIONS = _table("decisions", "id", "user_name", "state", "made_unix_s", "record")
_SETTINGS = _table("settings", "name", "record")
_PLANNER = "planner"


class PlanBook:
    """Blocking; safe to call from any thread. Raises Unreachable when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def applications(self) -> list[Application]:
        return self._all(sa.select(_APPLICATIONS.c.record).order_by(_APPLICATIONS.c.name), Application)

    def put_application(self, application: Application) -> None:
        self._put(_APPLICATIONS, "name", {"name": application.name}, application)

    def remove_application(self, name: str) -> None:
        self._remove(_APPLICATIONS.c.name == name, _APPLICATIONS)

    def sessions(self) -> list[Session]:
        return self._all(sa.select(_SESSIONS.c.record).order_by(_SESSIONS.c.user_name), Session)

    def put_session(self, session: Session) -> None:
        self._put(_SESSIONS, "user_name", {"user_name": session.user}, session)

    def remove_session(self, user: str) -> None:
        self._remove(_SESSIONS.c.user_name == user, _SESSIONS)

    def put_decision(self, decision: Decision) -> None:
        row = {
            "id": decision.id,
            "user_name": decision.user,
            "state": decision.state.value,
            "made_unix_s": decision.made_unix_s,
        }
        self._put(_DECISIONS, "id", row, decision)

    def decision(self, decision_id: str) -> Decision | None:
        found = self._all(sa.select(_DECISIONS.c.record).where(_DECISIONS.c.id == decision_id), Decision)
        return found[0] if found else None

    def decisions(self, limit: int, user: str = "", before: str = "") -> list[Decision]:
        """The newest first; of one user if named; `before`: those that come after the one of this id."""
        wanted = sa.select(_DECISIONS.c.record)
        if user:
            wanted = wanted.where(_DECISIONS.c.user_name == user)
        if before:
            wanted = wanted.where(older_than(_DECISIONS, "made_unix_s", before))
        newest_first = (_DECISIONS.c.made_unix_s.desc(), _DECISIONS.c.id.desc())
        return self._all(wanted.order_by(*newest_first).limit(limit), Decision)

    def unfinished(self) -> list[Decision]:
        running = _DECISIONS.c.state == DecisionState.RUNNING.value
        return self._all(sa.select(_DECISIONS.c.record).where(running).order_by(_DECISIONS.c.made_unix_s), Decision)

    def setting(self) -> PlannerSetting | None:
        """As it was last chosen; None while nobody has."""
        found = self._all(sa.select(_SETTINGS.c.record).where(_SETTINGS.c.name == _PLANNER), PlannerSetting)
        return found[0] if found else None

    def put_setting(self, setting: PlannerSetting) -> None:
        self._put(_SETTINGS, "name", {"name": _PLANNER}, setting)

    def _put(self, table: sa.TableClause, key: str, row: dict[str, Any], value: msgspec.Struct) -> None:
        row = {**row, "record": msgspec.json.encode(value).decode()}
        with self._database.write() as connection:
            connection.execute(sa.delete(table).where(table.c[key] == row[key]))
            connection.execute(sa.insert(table).values(row))

    def _remove(self, which: sa.ColumnElement[bool], table: sa.TableClause) -> None:
        with self._database.write() as connection:
            connection.execute(sa.delete(table).where(which))

    def _all(self, statement: sa.Select[Any], kind: type[T]) -> list[T]:
        with self._database.read() as connection:
            rows = connection.execute(statement).scalars().all()
        return [msgspec.json.decode(row, type=kind) for row in rows]
