"""The records of migrations, on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import postgresql
import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from whimbrel.controller.database import NEWEST, open_database, parse_database
from whimbrel.controller.planning.book import PlanBook
from whimbrel.controller.store import MigrationStore
from whimbrel.controller.upgrade import SCRIPTS
from whimbrel.model.application import Application, Session, SessionState
from whimbrel.model.decision import Decision, DecisionState, PlannerSetting, Times
from whimbrel.model.errors import BadInput, Unreachable, WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome, Phase, Round

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[postgresql.Server]:
    if why := postgresql.missing():
        pytest.skip(why)
    with postgresql.server() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> sa.URL:
    """A database that nobody has used yet."""
    if request.param == "sqlite":
        return at(tmp_path / "deep" / "db")
    made: postgresql.Server = request.getfixturevalue("server")
    return made.database(f"db{next(_NUMBERS)}")


def at(path: Path) -> sa.URL:
    return parse_database("", path)


def record(n: int, service: str = "s", outcome: Outcome = Outcome.DONE) -> MigrationRecord:
    return MigrationRecord(
        id=f"m{n}", service=service, source="a", destination="b", strategy="hybrid", outcome=outcome,
        started_unix_s=1.7e9 + n / 1e3, phases=(Phase(name="freeze", start_ms=1.0, duration_ms=2.0),),
        rounds=(Round(n=1, dirty_pages=3, bytes_sent=4, duration_ms=5.0),), state_ok=True,
    )  # fmt: skip


def test_records_survive_whole(url: sa.URL) -> None:
    store = MigrationStore(url)
    store.put(record(1))
    store.close()
    again = MigrationStore(url)
    assert again.get("m1") == record(1)
    assert again.get("m2") is None
    again.close()


def test_order_limit_service_and_unfinished(url: sa.URL) -> None:
    store = MigrationStore(url)
    for n in range(5):
        store.put(record(n, service="even" if n % 2 == 0 else "odd", outcome=Outcome.RUNNING))
    store.put(replace(record(1, "odd"), outcome=Outcome.DONE))
    assert [one.id for one in store.newest(3)] == ["m4", "m3", "m2"]
    assert [one.id for one in store.newest(10, "odd")] == ["m3", "m1"]
    assert [one.id for one in store.unfinished()] == ["m0", "m2", "m3", "m4"]
    store.close()


def test_many_threads_at_once(url: sa.URL) -> None:
    store = MigrationStore(url)
    threads = [threading.Thread(target=lambda n=n: store.put(record(n))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.newest(100)) == 20
    store.close()


def test_two_controllers_that_open_a_new_one_at_once(url: sa.URL) -> None:
    opened: list[sa.Engine] = []
    threads = [threading.Thread(target=lambda: opened.append(open_database(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for engine in opened:
        engine.dispose()


def test_who_opens_an_older_one_takes_it_to_the_last_step_that_there_is(url: sa.URL) -> None:
    last = sorted(path.name for path in (SCRIPTS / "versions").glob("0*.py"))[-1].partition("_")[0]
    assert last == NEWEST, "a new step is named as the newest"
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE mec_entries"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0002'"))
    engine.dispose()
    engine = open_database(url)
    assert sa.inspect(engine).has_table("mec_entries")
    with engine.begin() as connection:
        assert connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [NEWEST]
    engine.dispose()


def test_a_newer_schema_is_refused(url: sa.URL) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(WhimbrelError, match=r"has schema 9999, this version .* writes 0\d+: use the version"):
        MigrationStore(url)


# --- PostgreSQL -----------------------------------------------------------------------------------------------
def test_a_server_that_was_away_is_found_again(server: postgresql.Server) -> None:
    store = MigrationStore(server.database(f"db{next(_NUMBERS)}"))
    store.put(record(1))
    server.stop(at_once=True)
    try:
        with pytest.raises(Unreachable, match=r"the database postgresql.* does not answer: "):
            store.put(record(2))
    finally:
        server.start()
    assert store.get("m1") == record(1), "what `put` returned from survives"
    store.put(record(2))
    assert [one.id for one in store.newest(9)] == ["m2", "m1"]
    store.close()


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    url = parse_database(f"postgresql://me:secret@/db?host={tmp_path}", tmp_path / "db")
    with pytest.raises(WhimbrelError, match=r"cannot open the database .*me:\*\*\*@.*check `database`") as caught:
        MigrationStore(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_planning_keeps_survives_whole(url: sa.URL) -> None:
    store = MigrationStore(url)
    book = PlanBook(store.database)
    assert (book.applications(), book.sessions(), book.decisions(9), book.setting()) == ([], [], [], None)
    application = Application(name="app", image="oci:/x", max_delay_ms=50.0)
    session = Session(user="ue-1", application="app", service="app-ue-1", state=SessionState.READY, ports=("1/tcp",))
    first = decision(1)
    for other in ("ue-1", "ue-2"):
        book.put_session(replace(session, user=other))
    book.put_application(application)
    book.put_decision(first)
    book.put_decision(decision(2, user="ue-2", state=DecisionState.DONE))
    book.put_setting(PlannerSetting(planner="nearest", paused=True))
    store.close()
    again = MigrationStore(url)
    book = PlanBook(again.database)
    assert book.applications() == [application]
    assert book.sessions() == [session, replace(session, user="ue-2")]
    assert [one.id for one in book.decisions(9)] == ["d2", "d1"]
    assert book.decisions(9, "ue-1") == book.unfinished() == [first]
    assert book.decision("d1") == first
    assert book.decision("d9") is None
    assert book.setting() == PlannerSetting(planner="nearest", paused=True)
    book.put_decision(replace(first, state=DecisionState.FAILED, error="x"))
    book.remove_session("ue-1")
    book.remove_application("app")
    assert (book.unfinished(), book.applications(), len(book.sessions())) == ([], [], 1)
    again.close()


def decision(n: int, user: str = "ue-1", state: DecisionState = DecisionState.RUNNING) -> Decision:
    return Decision(
        id=f"d{n}", user=user, service="s", planner="orchestrated", order="coordinated", reason="why", state=state,
        made_unix_s=1.7e9 + n / 1e3, from_base_station="a", base_station="b", from_server="c", server="d",
        predicted=Times(migration_ms=60.5), measured=Times(migration_ms=70.0),
    )  # fmt: skip


# --- SQLite ---------------------------------------------------------------------------------------------------
def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database at all, but long enough to be read as one" * 100)
    with pytest.raises(WhimbrelError, match="cannot open the database"):
        MigrationStore(at(tmp_path / "db"))


def test_what_a_version_without_steps_wrote_is_kept(tmp_path: Path) -> None:
    store = MigrationStore(at(tmp_path / "db"))
    store.put(record(1))
    store.close()
    with sqlite3.connect(tmp_path / "db") as db:
        for table in ("alembic_version", "applications", "sessions", "decisions", "settings", "mec_entries"):
            db.execute(f"DROP TABLE {table}")  # there was only one, and no steps
    db.close()
    again = MigrationStore(at(tmp_path / "db"))
    assert again.get("m1") == record(1)
    again.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("controller.db", "no URL"),
        ("mysql://host/db", "of the kind 'mysql'"),
        ("sqlite:///relative/path", "no absolute path"),
        ("sqlite://", "no absolute path"),
        ("postgresql://host", "names no database"),
    ],
)
def test_what_is_no_database_is_named(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"^database .*{why}.*: write sqlite:////"):
        parse_database(text, tmp_path / "db")
