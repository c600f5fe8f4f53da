"""The region's central database (`coordinated`, figure 1): SQLite in a file of the controller's own, or PostgreSQL.

Its schema grows by steps (`upgrade`). Opening takes the steps that are lacking, all or none, so a
newer controller finds what an older one wrote; an older controller refuses what a newer one wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from whimbrel.model.errors import BadInput, WhimbrelError

NEWEST = "0003"
"""The last step of `schema/versions`."""
VERSION_TABLE = "alembic_version"
DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
CONNECT_TIMEOUT_S = 5
READS = "whimbrel_reads"
"""The execution option of an engine whose transactions change nothing."""
LOCK = 0x77686D62
"""Of PostgreSQL's advisory locks the one that two controllers meet at which open the same database."""


def parse_database(text: str, default: Path) -> sa.URL:
    """``sqlite:////ABSOLUTE/PATH`` or ``postgresql://USER@HOST/NAME``; empty: SQLite at `default`. Raises BadInput."""
    if not text:
        return sa.URL.create("sqlite", database=str(default))
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise BadInput(f"database is no URL: {_WRITE}") from error
    driver = DRIVERS.get(url.drivername.partition("+")[0])
    if driver is None:
        raise BadInput(f"database is of the kind {url.drivername!r}: {_WRITE}")
    if driver == "sqlite" and not (url.database or "").startswith("/"):
        raise BadInput(f"database {url.database or ''!r} is no absolute path: {_WRITE}")
    if driver != "sqlite" and not url.database:
        raise BadInput(f"database names no database of its server: {_WRITE}")
    return url.set(drivername=driver)


_WRITE = "write sqlite:////var/lib/whimbrel/controller.sqlite3 or postgresql://USER:PASSWORD@HOST/NAME"


def shown(url: sa.URL) -> str:
    """Without its password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def open_database(url: sa.URL) -> sa.Engine:
    """Connected, its schema as this version writes it. Raises WhimbrelError when it cannot be used."""
    engine = _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
    try:
        with _alone(url), engine.begin() as connection:
            if url.get_backend_name() == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            _upgrade(connection, shown(url))
    except (sa.exc.SQLAlchemyError, OSError) as error:
        engine.dispose()
        raise WhimbrelError(f"cannot open the database {shown(url)}: {cause(error)}; check `database`") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextlib.contextmanager
def _alone(url: sa.URL) -> Iterator[None]:
    """Of those that open a file of SQLite one at a time: two that both switch a new one to its write-ahead log do not
    wait for each other, one of them fails. PostgreSQL has its advisory lock."""
    if url.get_backend_name() != "sqlite":
        yield
        return
    folder = os.open(Path(str(url.database)).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def cause(error: Exception) -> str:
    """The driver's own words, in one line."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _sqlite(url: sa.URL) -> sa.Engine:
    try:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WhimbrelError(f"cannot open the database {url.database}: {error.strerror}; check `database`") from error
    engine = sa.create_engine(url, connect_args={"timeout": CONNECT_TIMEOUT_S})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()
        connection.isolation_level = None  # pysqlite's own transactions would leave changes of the schema out

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # who will write says so at once: to find out later, with another writer there, is an error and no wait
        reads = connection.get_execution_options().get(READS, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _postgresql(url: sa.URL) -> sa.Engine:
    """A connection that the server ended meanwhile is made anew."""
    return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})


def _upgrade(connection: sa.Connection, name: str) -> None:
    """Raises WhimbrelError for a schema that this version does not know."""
    is_there = sa.inspect(connection).has_table(VERSION_TABLE)
    if is_there and connection.scalars(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).all() == [NEWEST]:
        return
    from whimbrel.controller.upgrade import upgrade  # Alembic: needed once, and slower to import than the rest of this

    upgrade(connection, name)
