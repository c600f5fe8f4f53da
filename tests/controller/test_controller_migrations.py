"""Migrations through the real controller process and its client; the agents are in memory."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fakes import FakeRegion
from live_controller import LiveController, wait_until
from whimbrel.controller.client import ControllerClient
from whimbrel.model.errors import BadInput, Conflict, Refused, Unreachable
from whimbrel.model.migration import Outcome, Progress
from whimbrel.model.service import ServiceState


@pytest.fixture
def demo(client: ControllerClient) -> str:
    return client.run_service("demo", "oci:/x", "edge-1", workload="20 MB").spec.name


def test_a_migration_from_request_to_record(region: FakeRegion, client: ControllerClient, demo: str) -> None:
    news: list[Progress] = []
    region.go.clear()
    threading.Timer(0.3, region.go.set).start()
    record = client.migrate(
        demo, "edge-2", "pre-copy", max_downtime_ms=80, deadline_ms=9000, bandwidth_bps=1e8,
        on_progress=news.append, reason="the user moved",
    )  # fmt: skip
    assert record.outcome is Outcome.DONE
    assert (record.service, record.source, record.destination) == ("demo", "edge-1", "edge-2")
    assert (record.strategy, record.workload, record.reason) == ("pre-copy", "20 MB", "the user moved")
    assert record.freeze_ms == 45.5
    assert record.started_unix_s > 0
    assert [one.phase for one in news][-1] == "freeze"
    assert all(one.migration == record.id for one in news)
    call = region.agents["edge-1"].requests[-1]
    assert call.request.id == record.id
    assert (call.request.max_downtime_ms, call.request.deadline_ms, call.request.bandwidth_bps) == (
        80,
        9000,
        1e8,
    )
    assert call.destination == region.agents["edge-2"].endpoint
    assert call.gateways == (region.agents["gw-1"].endpoint,)
    assert client.service(demo).node == "edge-2"
    assert client.migration(record.id) == record
    assert client.migrations()[0] == record
    assert client.migrations(service="other") == []


def test_one_after_the_other_in_order(client: ControllerClient, demo: str) -> None:
    ids = [client.migrate(demo, node).id for node in ("edge-2", "edge-3", "edge-1")]
    assert [record.id for record in client.migrations(service=demo, limit=3)] == ids[::-1]


def test_a_database_that_is_away_at_the_end_keeps_no_service_locked(
    live: LiveController, region: FakeRegion, client: ControllerClient, demo: str
) -> None:
    region.go.clear()
    started = client.start_migration(demo, "edge-2")
    with sqlite3.connect(live.database, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        region.go.set()
        assert client.follow(started.id).outcome is Outcome.DONE, "whoever listens hears the end"
        other.execute("ROLLBACK")
    other.close()
    assert client.migrate(demo, "edge-3").outcome is Outcome.DONE


@pytest.mark.parametrize(
    ("service", "to", "says"),
    [
        ("nope", "edge-2", "there is no service 'nope': running are demo"),
        ("demo", "nope", "there is no node 'nope'"),
        ("demo", "edge-1", "already runs on edge-1"),
        ("demo", "gw-1", "is a gateway"),
    ],
)
def test_bad_input(region: FakeRegion, client: ControllerClient, demo: str, service: str, to: str, says: str) -> None:
    before = client.migrations()
    with pytest.raises(BadInput, match=says):
        client.migrate(service, to)
    assert client.migrations() == before
    assert region.agents["edge-1"].requests == []


@pytest.mark.parametrize("node", ["edge-1", "edge-2", "gw-1"])
def test_an_agent_that_is_needed_is_down(region: FakeRegion, client: ControllerClient, demo: str, node: str) -> None:
    client.services()
    region.down(node)
    with pytest.raises(Unreachable, match=node):
        client.migrate(demo, "edge-2")
    assert region.agents["edge-1"].requests == []


def test_an_agent_that_is_not_needed_may_be_down(region: FakeRegion, client: ControllerClient, demo: str) -> None:
    region.down("edge-3")
    assert client.migrate(demo, "edge-2").outcome is Outcome.DONE


def test_a_service_that_does_not_run(region: FakeRegion, client: ControllerClient, demo: str) -> None:
    agent = region.agents["edge-1"]
    agent.services[demo] = replace(agent.services[demo], state=ServiceState.STOPPED)
    with pytest.raises(Refused, match="stopped, not running"):
        client.migrate(demo, "edge-2")


def test_a_second_migration_of_the_same_service_is_refused(
    region: FakeRegion, client: ControllerClient, demo: str
) -> None:
    client.run_service("other", "oci:/x", "edge-1")
    region.go.clear()
    first = client.start_migration(demo, "edge-2")
    with pytest.raises(Conflict, match=f"already moves to edge-2 .*{first.id}"):
        client.start_migration(demo, "edge-3")
    other = client.start_migration("other", "edge-3")
    region.go.set()
    assert client.follow(first.id).outcome is Outcome.DONE
    assert client.follow(other.id).outcome is Outcome.DONE
    assert client.migrate(demo, "edge-3").outcome is Outcome.DONE


def test_of_many_starts_at_once_one_wins(
    live: LiveController, region: FakeRegion, client: ControllerClient, demo: str
) -> None:
    region.go.clear()
    results: list[str] = []

    def start() -> None:
        with live.client() as mine:
            try:
                results.append(mine.start_migration(demo, "edge-2").id)
            except Conflict:
                results.append("")

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    region.go.set()
    (winner,) = [one for one in results if one]
    assert client.follow(winner).outcome is Outcome.DONE
    assert len(region.agents["edge-1"].requests) == 1


def test_a_refusal_by_the_agent_becomes_a_record(region: FakeRegion, client: ControllerClient, demo: str) -> None:
    region.agents["edge-1"].refuse_migration = Refused("demo uses io_uring: CRIU cannot dump it")
    record = client.migrate(demo, "edge-2")
    assert record.outcome is Outcome.ROLLED_BACK, "as whatever ends before the commit"
    assert (record.error, record.error_code) == ("demo uses io_uring: CRIU cannot dump it", "refused")
    assert client.service(demo).node == "edge-1"
    assert client.migration(record.id) == record


def test_dry_run_moves_nothing(client: ControllerClient, demo: str) -> None:
    record = client.migrate(demo, "edge-2", dry_run=True)
    assert record.outcome is Outcome.DRY_RUN
    assert client.service(demo).node == "edge-1"


def test_cancel(region: FakeRegion, client: ControllerClient, demo: str) -> None:
    region.go.clear()
    started = client.start_migration(demo, "edge-2")
    wait_until(lambda: region.agents["edge-1"].requests, "the agent migrates")
    client.cancel(started.id)
    with pytest.raises(Conflict, match="does not wait for an answer from edge-2"):
        client.resolve(started.id, runs_at="source")
    record = client.follow(started.id)
    assert record.outcome is Outcome.CANCELLED
    assert record.error_code == "cancelled"
    assert client.service(demo).state is ServiceState.RUNNING
    with pytest.raises(Conflict, match="is over"):
        client.cancel(started.id)
    with pytest.raises(BadInput, match="there is no migration 'x'"):
        client.cancel("x")
    with pytest.raises(Conflict, match="nothing to resolve"):
        client.resolve(started.id, runs_at="source")
    with pytest.raises(BadInput, match="runs_at"):
        client.resolve(started.id, runs_at="nowhere")
    with pytest.raises(BadInput, match="there is no migration 'x'"):
        client.follow("x")


def test_several_listeners_and_late_ones(
    live: LiveController, region: FakeRegion, client: ControllerClient, demo: str
) -> None:
    region.go.clear()
    started = client.start_migration(demo, "edge-2")
    wait_until(lambda: region.agents["edge-1"].requests, "the agent migrates")
    heard: list[list[str]] = [[], []]

    def listen(n: int) -> None:
        with live.client() as mine:
            mine.follow(started.id, lambda news: heard[n].append(news.phase))

    threads = [threading.Thread(target=listen, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(heard), "both listeners heard the last news")
    region.go.set()
    for thread in threads:
        thread.join(10)
    assert heard[0] == heard[1] == ["rounds", "freeze"]
    assert client.follow(started.id).outcome is Outcome.DONE


def test_the_source_agent_dies_and_comes_back_with_the_service(
    region: FakeRegion, client: ControllerClient, demo: str
) -> None:
    source = region.agents["edge-1"]
    region.go.clear()
    started = client.start_migration(demo, "edge-2")
    wait_until(lambda: source.requests, "the agent migrates")
    region.down("edge-1")
    source.services[demo] = replace(source.services[demo], state=ServiceState.RUNNING)
    source.records.clear()  # it does not know any more: where the service runs tells the outcome
    region.up("edge-1")
    record = client.follow(started.id)
    assert record.outcome is Outcome.ROLLED_BACK
    assert "edge-1" in record.error
    assert client.migrate(demo, "edge-3", dry_run=True).outcome is Outcome.DRY_RUN


# --- restarts of the controller -----------------------------------------------------------------------------
@pytest.fixture
def own(tmp_path: Path) -> Iterator[LiveController]:
    """A controller and a region of the test's own, to be killed."""
    with FakeRegion() as region:
        controller = LiveController(region, tmp_path)
        controller.start()
        with controller.client() as client:
            client.run_service("demo", "oci:/x", "edge-1")
        yield controller
        controller.stop()


def test_records_survive_a_restart_and_sigterm_exits_0(own: LiveController) -> None:
    with own.client() as client:
        record = client.migrate("demo", "edge-2")
    assert own.terminate() == 0
    assert not own.socket.exists()
    own.start()
    with own.client() as client:
        assert client.migrations() == [record]


@pytest.mark.parametrize("arrived", [True, False])
def test_a_migration_outlives_a_killed_controller(own: LiveController, arrived: bool) -> None:
    source = own.region.agents["edge-1"]
    own.region.go.clear()
    with own.client() as client:
        started = client.start_migration("demo", "edge-2")
    wait_until(lambda: source.requests, "the agent migrates")
    own.kill()
    own.start()  # on the dead controller's socket file
    with own.client() as client:
        assert client.migration(started.id).outcome is Outcome.RUNNING
        with pytest.raises(Conflict):
            client.start_migration("demo", "edge-3")
        if arrived:
            own.region.go.set()
        else:
            client.cancel(started.id)
        record = client.follow(started.id)
        assert record.outcome is (Outcome.DONE if arrived else Outcome.CANCELLED)
        assert (record.freeze_ms, len(record.rounds)) == ((45.5, 1) if arrived else (45.5, 0))
        assert record.started_unix_s == started.started_unix_s
        assert client.migration(started.id) == record
        assert client.service("demo").node == ("edge-2" if arrived else "edge-1")


def test_sigterm_ends_the_streams_and_says_what_goes_on(own: LiveController) -> None:
    own.region.go.clear()
    caught: list[Exception] = []
    with own.client() as client:
        started = client.start_migration("demo", "edge-2")

    def listen() -> None:
        with own.client() as mine:
            try:
                mine.follow(started.id, lambda news: heard.set())
            except Unreachable as error:
                caught.append(error)

    heard = threading.Event()
    thread = threading.Thread(target=listen)
    thread.start()
    assert heard.wait(10)
    assert own.terminate() == 0
    thread.join(10)
    assert f"whimbrel migration show {started.id}" in str(caught[0])
    own.region.go.set()
