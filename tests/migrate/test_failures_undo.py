"""The undo itself fails, or meets what nobody expected: it runs whole all the same, and what it could not do is done
later. A source agent that is killed leaves neither memory nor shared storage taken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marks import thorough
from tests.migrate.conftest import PREFIX, Running, programs
from tests.migrate.disturb import (
    SOURCE,
    cancel_it,
    destination_is_clean,
    disturb,
    held_at,
    is_alive,
    is_frozen,
    journal_step,
    kill_agent,
    record_of_the_last,
    source_is_whole,
    until,
)
from whimbrel.lab import commands
from whimbrel.migrate.dump import Source
from whimbrel.migrate.job import Migration, Node
from whimbrel.migrate.journal import Journal
from whimbrel.migrate.nursery import Nursery
from whimbrel.migrate.run import migrate
from whimbrel.model.migration import MigrationRequest, Outcome
from whimbrel.model.node import Capabilities, Endpoint, Role
from whimbrel.model.service import ServiceSpec, ServiceState, ServiceStatus
from whimbrel.network import netns
from whimbrel.network.names import BRIDGE, port_name
from whimbrel.network.port import ServicePort
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.moving import Departure
from whimbrel.wire.calls import OfferMigration
from whimbrel.wire.rpc import RpcServer


class Port:
    """The service's port on the source's bridge; unplugged, nobody can open it."""

    def __init__(self, running: Running) -> None:
        self._where = commands.node_namespace(SOURCE, lab_dir=running.lab.directory)
        self._name = port_name(running.name)

    def unplug(self) -> None:
        self._set("nomaster")

    def plug(self) -> None:
        self._set("master", BRIDGE)

    def _set(self, *words: str) -> None:
        argv = ["ip", "link", "set", self._name, *words]
        netns.call(self._where, lambda: subprocess.run(argv, check=True, capture_output=True))


def test_an_undo_that_fails_in_part_is_done_again(running: Running) -> None:
    count, _ = running.user.ask("count")
    port = Port(running)

    def strike() -> None:
        port.unplug()
        cancel_it(running)

    record = disturb(running, "freeze.pages", strike)
    assert record.outcome is Outcome.CANCELLED
    assert "the undo failed in part" in record.reason
    assert not is_frozen(SOURCE, running.name), "whatever else fails, it runs"
    assert journal_step(running.lab, SOURCE) == "frozen", "it is not as it was: the journal must know"
    port.plug()
    until(lambda: not journal_step(running.lab, SOURCE), "it is not tried again")
    source_is_whole(running, count)
    destination_is_clean(running)


def test_settling_that_fails_is_tried_again(running: Running) -> None:
    """As it is after a restart; why it is not settled yet stands in the record."""
    count, _ = running.user.ask("count")
    lab, port = running.lab, Port(running)
    with held_at(running, "freeze.pages"):
        kill_agent(lab, SOURCE)
        lab.disarm()
        port.unplug()
        log = lab.state_dir(SOURCE) / "agent.log"
        read = len(log.read_text())
        lab.restart_agent(SOURCE)
        until(lambda: "could not be settled" in log.read_text()[read:], "the log does not tell")
        assert journal_step(lab, SOURCE) == "frozen"
        port.plug()
    record = record_of_the_last(running)
    assert record.outcome is Outcome.ROLLED_BACK
    assert record.reason.count("settling it failed") == 1, "however often it failed"
    assert not journal_step(lab, SOURCE)
    source_is_whole(running, count)
    destination_is_clean(running)


@pytest.mark.parametrize(
    ("point", "strategy"),
    [("freeze.copy", "tmpfs"), ("after-go", "shared"), *thorough(("incoming.prepare", "shared"))],
)
def test_a_killed_source_agent_leaves_no_dump_and_no_stage(running: Running, point: str, strategy: str) -> None:
    """Neither in the node's memory nor on the shared storage, also when it died before its journal was begun."""
    lab = running.lab
    with held_at(running, point, strategy):
        kill_agent(lab, SOURCE)
        lab.disarm()
        lab.restart_agent(SOURCE)
    record_of_the_last(running)
    until(lambda: not lab.leftovers(SOURCE, "nobody"), f"left: {lab.leftovers(SOURCE, 'nobody')}")
    assert running.user.echo(b"here") == b"here"


@contextlib.contextmanager
def stuck(pids: list[int]) -> Iterator[None]:
    """Processes that even SIGKILL does not end, as one that waits for a dead disk (by the v1 freezer)."""
    group = Cgroup(f"/whimbrel-tests-{PREFIX}-stuck")
    group.create()
    try:
        for pid in pids:
            group.attach(pid)
        group.freeze()
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # somebody else's SIGKILL may have ended it already
                os.kill(pid, signal.SIGKILL)
        group.thaw()
        until(lambda: not any(is_alive(pid) for pid in pids), "what was killed ends")
        group.remove()


@pytest.mark.parametrize("point", ["rounds", *thorough("freeze.files")])
def test_a_sender_of_files_that_cannot_be_ended_holds_nobody_up(running: Running, point: str) -> None:
    count, _ = running.user.ask("count")
    with contextlib.ExitStack() as stack:

        def strike() -> None:
            stack.enter_context(stuck(programs(running.lab, SOURCE, "sendfiles")))
            cancel_it(running)

        record = disturb(running, point, strike)
        assert record.outcome is Outcome.CANCELLED
        source_is_whole(running, count)
    destination_is_clean(running)


def test_an_error_that_nobody_expected_becomes_a_record(tmp_path: Path) -> None:
    """Here: the destination's agent answers an offer with something else."""

    async def offer(*_: Any) -> dict[str, int]:
        return {"nonsense": 1}

    async def attempt() -> Any:
        server = RpcServer({OfferMigration: offer})
        port = await server.start("127.0.0.1", 0)
        node = Endpoint(name="here", role=Role.EDGE, host="127.0.0.1", port=1, overlay_host="127.0.0.1")
        there = Endpoint(name="there", role=Role.EDGE, host="127.0.0.1", port=port, overlay_host="127.0.0.1")
        spec = ServiceSpec(name="moves", image="rootfs:/", address="10.77.1.1/16")
        status = ServiceStatus(
            spec=spec, node="here", state=ServiceState.RUNNING, pid=1, mac="02:00:00:00:00:01", image_digest=""
        )
        departure = Departure(rootfs="/", files=(), external=(), cgroup="/nowhere")
        capabilities = Capabilities(whimbrel="", machine="", kernel="", criu="", runc="")
        job = Migration(
            request=MigrationRequest(id="1", service="moves", destination="there", strategy="hybrid"),
            source=Source(status, departure, tmp_path, holes=False, image=None, needed_file=tmp_path / "needed"),
            node=Node(node, capabilities, ServicePort(tmp_path), Journal(tmp_path / "journal"), Nursery()),
            destination=there,
            gateways=(),
            emit=lambda _: None,
            end=lambda: None,
            send_logs=lambda _: None,
            discard=lambda: None,
        )
        try:
            return await migrate(job)
        finally:
            await server.close()

    record = asyncio.run(attempt())
    assert record.outcome is Outcome.ROLLED_BACK
    assert "internal error" in record.error
    assert "ValidationError" in record.error
