"""The whole loop in a lab: a user walks, is handed over, and its service follows, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from inbox import Inbox
from marks import thorough
from whimbrel.bench.recovery import places, topology_text
from whimbrel.controller.client import ControllerClient
from whimbrel.lab import commands, processes
from whimbrel.lab.topology import CONTROLLER
from whimbrel.migrate.failpoints import inherited
from whimbrel.model.application import Application
from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.model.radio import RequestTimes, UserEvent
from whimbrel.network import netns
from whimbrel.workloads.catalogue import build_workload

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="moving containers needs root")]
PREFIX = os.environ.get("WHIMBREL_TEST_LAB", "tf") + "f" + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
EDGES, STATIONS = places(PREFIX)
USER, SERVICE = "ue-1", "demo-ue-1"
TIMEOUT_S = 60.0


@dataclass
class Lab:
    directory: Path
    topology: Path
    failpoints: Path
    controller: ControllerClient

    @property
    def address(self) -> str:
        return f"unix:{self.directory}/controller.sock"

    def kill(self, what: str) -> None:
        """The controller, or the agent of a node."""
        os.kill(processes.read_pid(self._pid_file(what)), signal.SIGKILL)
        wait_until(lambda: processes.read_pid(self._pid_file(what)) == 0, f"{what} is dead")

    def start(self, what: str) -> None:
        if processes.read_pid(self._pid_file(what)):
            return
        plan = commands.recorded(self.directory)
        assert plan is not None
        folder = self._pid_file(what).parent
        (process,) = [one for one in processes.lab_processes(plan, self.directory) if one.directory == folder]
        with inherited(self.failpoints):
            processes.start(process)

    def _pid_file(self, what: str) -> Path:
        return self.directory / "controller.pid" if what == "controller" else self.directory / what / "agent.pid"

    def homes(self) -> list[str]:
        """Where the service runs, by the containers' own control groups: agents may be dead."""
        return [edge for edge in EDGES if (self.directory / edge / "run/runc" / SERVICE).exists()]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if condition():
                return
        except WhimbrelError:
            pass
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S:.0f} s in vain: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    base = tmp_path_factory.mktemp("follow")
    topology, failpoints = base / "topology.toml", base / "failpoints"
    topology.write_text(topology_text(PREFIX))
    failpoints.mkdir()
    image = build_workload("demo").reference
    directory = Path(f"/var/lib/whimbrel-tests/{PREFIX}/follow")
    commands.lab_down(lab_dir=directory)
    with inherited(failpoints):
        commands.lab_up(topology, lab_dir=directory)
    try:
        with ControllerClient(f"unix:{directory}/controller.sock") as controller:
            controller.offer(
                Application(name="demo", image=image, workload="demo", env=("MEMORY_MB=24",), tasks_per_s=1000.0,
                            ports=("7000/tcp", "7000/udp"))
            )  # fmt: skip
            yield Lab(directory, topology, failpoints, controller)
    finally:
        commands.lab_down(lab_dir=directory)


@dataclass
class Walker:
    """`whimbrel ue`, walking."""

    out: Path

    def answered(self, after_unix_s: float = 0.0) -> int:
        return sum(
            delay is not None and sent > after_unix_s
            for event in self.events() if isinstance(event, RequestTimes) and event.protocol == "tcp"
            for sent, delay in zip(event.sent_unix_s, event.delays_ms, strict=True)
        )  # fmt: skip

    def lost(self) -> int:
        """On the connection; what is sent by UDP into a handover may be too much for a socket's buffer."""
        told = [event for event in self.events() if isinstance(event, RequestTimes) and event.protocol == "tcp"]
        return sum(delay is None for event in told for delay in event.delays_ms)

    def events(self) -> list[UserEvent]:
        whole = self.out.read_bytes().rpartition(b"\n")[0] if self.out.exists() else b""
        return [msgspec.json.decode(line, type=UserEvent) for line in whole.splitlines()]


@pytest.fixture(scope="module")
def walking(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walker]:
    """A user with its service, who walks until all tests are over."""
    out = tmp_path_factory.mktemp("user") / "ue.jsonl"
    argv = [sys.executable, "-m", "whimbrel", "ue", "--topology", str(lab.topology), "--application", "demo"]
    argv += ["--report-to", lab.address, "--decide", "network", "--out", str(out)]
    lab.controller.set_planner(paused=True)
    user = subprocess.Popen(argv, stderr=subprocess.PIPE)
    walker = Walker(out)
    try:
        wait_until(lambda: walker.answered() > 50, "the user talks to its service")
        yield walker
    finally:
        user.send_signal(signal.SIGTERM)
        said = user.communicate(timeout=30)[1]
        assert said == b""
        lab.controller.remove_user(USER)
        assert lab.controller.services() == []


@pytest.fixture
def walker(lab: Lab, walking: Walker) -> Iterator[Walker]:
    """The planner decides while the test lasts, and all is whole again after it."""
    lab.controller.set_planner("orchestrated", "", "auto", False)
    try:
        yield walking
    finally:
        for path in lab.failpoints.iterdir():
            path.unlink()
        for what in ("controller", *EDGES, *STATIONS):
            lab.start(what)
        wait_until(lambda: all(node.up for node in lab.controller.nodes()), "all agents are back")
        lab.controller.set_planner(paused=True)
        wait_until(lambda: not running(lab), "what was decided is over")
        for log in (lab.directory / "controller.log", *(lab.directory / edge / "agent.log" for edge in EDGES)):
            print(f"--- {log}\n{log.read_text()[-2500:] if log.exists() else ''}")  # shown when the test has failed


def running(lab: Lab) -> list[Decision]:
    return [one for one in lab.controller.decisions(USER, 10) if one.state is DecisionState.RUNNING]


def moved(lab: Lab) -> list[Decision]:
    """Handovers that took the service along."""
    return [one for one in lab.controller.decisions(USER, 100)
            if one.state is DecisionState.DONE and one.migrates and one.handover_at_unix_s]  # fmt: skip


def test_the_service_follows_its_user(lab: Lab, walker: Walker, record_property: Callable[[str, object], None]) -> None:
    wait_until(lambda: moved(lab), "a handover took it along")
    lab.controller.set_planner(paused=True)
    wait_until(lambda: not running(lab), "nothing is under way")
    for one in moved(lab):
        assert EDGES.index(one.server) == STATIONS.index(one.base_station), "to the edge beside its base station"
        assert (one.planner, one.order) == ("orchestrated", "coordinated")
        assert one.measured is not None
        assert one.measured.handover_ms >= 100
        longest = max(one.measured.migration_ms, one.measured.handover_ms)
        assert longest - 1 <= one.measured.interruption_ms <= one.measured.migration_ms + one.measured.handover_ms + 1
        record_property("interruption_ms", one.measured.interruption_ms)
        record_property("migration_ms", one.measured.migration_ms)
        assert lab.controller.migration(one.migration).outcome is Outcome.DONE
        assert one.prediction_error is not None
    assert lab.homes() == [lab.controller.user(USER).server]
    assert walker.lost() == 0, "no request was lost: it was held at the gateways, or on the air"


@pytest.mark.parametrize(
    ("point", "victim"),
    [
        ("freeze.dump", "controller"),
        *thorough(
            ("freeze.restore", "source"),
            ("rounds", "gateway"),
            ("rounds", "destination"),
            ("receive.committed", "controller"),
        ),
    ],
)
def test_whoever_is_killed_the_service_and_its_user_find_each_other(
    lab: Lab, walker: Walker, point: str, victim: str
) -> None:
    (lab.failpoints / point).touch()
    reached = lab.failpoints / f"{point}.reached"
    wait_until(reached.exists, f"a migration comes to {point}")
    (decision,) = running(lab)
    dead = {
        "controller": "controller", "source": decision.from_server, "destination": decision.server,
        "gateway": decision.base_station,
    }[victim]  # fmt: skip
    lab.kill(dead)
    for path in lab.failpoints.iterdir():
        path.unlink()
    lab.start(dead)
    wait_until(lambda: all(node.up for node in lab.controller.nodes()), "all agents answer again")
    over: list[Decision] = []
    wait_until(
        lambda: over.append(lab.controller.decision(decision.id)) or over[-1].state is not DecisionState.RUNNING,
        "the decision is over",
    )
    record: MigrationRecord = lab.controller.migrations(SERVICE, 1)[-1]
    assert (over[-1].state is DecisionState.DONE) == (record.outcome is Outcome.DONE), (over[-1].error, record)
    again_unix_s = time.time()
    wait_until(lambda: walker.answered(again_unix_s) > 20, "the user talks to its service again")
    wait_until(lambda: len(lab.homes()) == 1, "it is in one place only")
    assert lab.controller.service(SERVICE).node in lab.homes()


# --- consumers of the MEC interfaces ------------------------------------------------------------------------
TRIGGERED, COMPLETED, FAILED = (f"INTERHOST_MOVEOUT_{what}" for what in ("TRIGGERED", "COMPLETED", "FAILED"))


@pytest.fixture
def inbox(lab: Lab) -> Iterator[Inbox]:
    """Beside the lab's controller, in its namespace."""
    with netns.call(commands.node_namespace(CONTROLLER, lab_dir=lab.directory), Inbox) as found:
        yield found


@pytest.fixture
def consumer(lab: Lab, inbox: Inbox) -> Iterator[httpx.Client]:
    """It has subscribed to the service's moves, to handovers, and to the user's way."""
    transport = httpx.HTTPTransport(uds=str(lab.directory / "controller.sock"))
    wanted = {
        "/amsi/v1/subscriptions": {
            "subscriptionType": "MobilityProcedureSubscription", "callbackReference": inbox.url,
            "filterCriteria": {"appInstanceId": SERVICE, "mobilityStatus": [TRIGGERED, COMPLETED, FAILED]},
        },
        "/rni/v2/subscriptions": {
            "subscriptionType": "CellChangeSubscription", "callbackReference": inbox.url, "filterCriteriaAssocHo": {},
        },
        "/location/v2/subscriptions/userTracking": {
            "userTrackingSubscription": {"callbackReference": {"notifyURL": inbox.url}, "address": f"acr:{USER}"},
        },
    }  # fmt: skip
    with httpx.Client(transport=transport, base_url="http://controller", timeout=20) as http:
        made = []
        try:
            for path, body in wanted.items():
                answer = http.post(path, json=body)
                assert answer.status_code == 201, answer.text
                made.append(answer.headers["Location"])
            yield http
        finally:
            for location in made:
                http.delete(location)


def statuses(inbox: Inbox) -> list[str]:
    return [one["mobilityStatus"] for one in list(inbox.got) if "mobilityStatus" in one]


def test_mec_consumers_hear_of_the_walk_and_of_a_cancelled_move(
    lab: Lab, inbox: Inbox, consumer: httpx.Client, walker: Walker
) -> None:
    """It has subscribed before the planner begins. Agents, radio, handovers and migrations are the lab's; what comes is
    held against the planner's own record."""
    begun_unix_s = time.time()
    wait_until(lambda: COMPLETED in statuses(inbox), "a move of the service is told")
    wait_until(lambda: [one for one in moved(lab) if one.made_unix_s > begun_unix_s], "a handover took it along")
    lab.controller.set_planner(paused=True)
    wait_until(lambda: not running(lab), "nothing is under way")
    decision = [one for one in moved(lab) if one.made_unix_s > begun_unix_s][-1]
    assert lab.controller.migration(decision.migration).outcome is Outcome.DONE
    wait_until(lambda: statuses(inbox)[-1:] == [COMPLETED], "the end is told")
    assert TRIGGERED in statuses(inbox)[: statuses(inbox).index(COMPLETED)], "the beginning comes first"
    told = [one for one in inbox.got if one.get("mobilityStatus") == COMPLETED][-1]
    assert told["targetAppInfo"]["appInstanceId"] == SERVICE
    place = lab.controller.service(SERVICE).spec.address.split("/")[0]
    assert {one["host"] for one in told["targetAppInfo"]["commInterface"]["ipAddresses"]} == {place}
    (user,) = told["associateId"]

    cells = [f"{1 + STATIONS.index(name):07d}" for name in (decision.from_base_station, decision.base_station)]

    def cell_change(one: dict[str, Any]) -> bool:
        return (
            one.get("notificationType") == "CellChangeNotification"
            and [each["value"] for each in one["associateId"]] == [user["value"]]
            and (one["srcEcgi"]["cellId"], [each["cellId"] for each in one["trgEcgi"]]) == (cells[0], cells[1:])
        )

    assert inbox.wait(cell_change, "the handover is told")["hoStatus"] == 3

    def entering(one: dict[str, Any]) -> bool:
        way = one.get("zonalPresenceNotification", {})
        return (way.get("userEventType"), way.get("currentAccessPointId")) == ("Entering", decision.base_station)

    way = inbox.wait(entering, "the user's way is told")["zonalPresenceNotification"]
    assert (way["address"], way["zoneId"]) == (f"acr:{USER}", decision.server), "the zone is the edge's of that cell"

    heard = len(statuses(inbox))
    (lab.failpoints / "rounds").touch()
    home = lab.controller.service(SERVICE).node
    record = lab.controller.start_migration(SERVICE, next(edge for edge in EDGES if edge != home))
    wait_until((lab.failpoints / "rounds.reached").exists, "it is under way")
    lab.controller.cancel(record.id)
    (lab.failpoints / "rounds").unlink()
    wait_until(lambda: statuses(inbox)[heard:] == [TRIGGERED, FAILED], "the cancelled move is told")
    assert lab.controller.migration(record.id).outcome is Outcome.CANCELLED
    assert lab.homes() == [home]
