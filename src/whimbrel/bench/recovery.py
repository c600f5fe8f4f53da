"""`whimbrel bench recovery`: how soon all is consistent again after a kill.

A lab with a user that walks to and fro between two base stations, and a service that follows it. At one of several
moments the controller or an agent is killed (SIGKILL) and started again. Time counts from that start until all of this
holds: every agent answers, nothing that was decided or migrates is under way, the service runs in one place, which the
controller and the agent there name alike, nothing of it is at the other edge, and its user had an answer after that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from whimbrel.bench import table
from whimbrel.bench.companion import companion
from whimbrel.bench.report import FAIL, PASS, machine, spread
from whimbrel.controller.client import ControllerClient
from whimbrel.lab import processes
from whimbrel.lab.record import recorded
from whimbrel.lab.session import lab_session
from whimbrel.migrate.failpoints import inherited
from whimbrel.model.application import Application
from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.errors import BadInput, StepFailed, WhimbrelError
from whimbrel.model.migration import Outcome
from whimbrel.model.radio import RequestTimes, UserEvent
from whimbrel.workloads.catalogue import build_workload

PROMISED_S = 10.0
GIVEN_UP_S = 60.0
"""What is not consistent by then never will be, as far as a user cares."""
REACHED_S = 90.0
LOOK_EVERY_S = 0.05
ANSWERS = 20
PLANNED_S = 2.0
ORDER_S = 0.3
"""Before a handover: the user has its order by then."""
LAB_DIR = Path("/var/lib/whimbrel/bench-recovery")
PREFIX = "rec"
USER, APPLICATION = "ue-1", "demo"
SERVICE = f"{APPLICATION}-{USER}"

CONTROLLER, SOURCE, DESTINATION, GATEWAY = "controller", "source", "destination", "gateway"
VICTIMS = (CONTROLLER, SOURCE, DESTINATION, GATEWAY)
DISCOVERY, DECIDED, ORDERED = "discovery", "decided", "handover-order"
POINTS = ("rounds", "freeze.dump", "freeze.restore", "receive.committed")
"""Moments of a migration at which it can be stopped (`migrate.failpoints`)."""
MOMENTS = (DISCOVERY, DECIDED, ORDERED, *POINTS)
HEADINGS = ("moment", "killed", "recovered", "agents answer", "records", "one place", "user", "promised")


def places(prefix: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The edges and the base stations of a region with names of this prefix."""
    return (f"{prefix}-1", f"{prefix}-2"), (f"{prefix}-gw-1", f"{prefix}-gw-2")


def topology_text(prefix: str) -> str:
    """Two sites, and a user that walks to and fro between them."""
    edges, stations = places(prefix)
    return f"""
name = "{prefix}-recovery"
prefix = "{prefix}-"
overlay_subnet = "10.77.0.0/16"
controller_subnet = "192.168.100.0/24"
routers = [{{ name = "site-1" }}, {{ name = "site-2" }}]
links = [{{ between = ["site-1", "site-2"], delay = "2ms" }}]
edges = [
    {{ name = "{edges[0]}", subnet = "192.168.101.0/24", at = "site-1" }},
    {{ name = "{edges[1]}", subnet = "192.168.102.0/24", at = "site-2" }},
]
[[gateways]]
name = "{stations[0]}"
subnet = "192.168.111.0/24"
overlay_address = "10.77.0.1"
access_subnet = "10.99.0.0/24"
at = "site-1"
[[gateways]]
name = "{stations[1]}"
subnet = "192.168.112.0/24"
overlay_address = "10.77.0.2"
access_subnet = "10.99.1.0/24"
at = "site-2"
[[users]]
name = "{USER}"
attached = ["{stations[0]}", "{stations[1]}"]
[radio]
path_loss = {{ shadowing_db = 1.0 }}
handover = {{ interruption_ms = 100.0 }}
base_stations = [
    {{ name = "{stations[0]}", x_m = 0.0, y_m = 0.0 }},
    {{ name = "{stations[1]}", x_m = 50.0, y_m = 0.0 }},
]
[[radio.users]]
name = "{USER}"
speed_m_per_s = 4.0
course = "there-and-back"
waypoints = [{{ x_m = 12.0, y_m = 5.0 }}, {{ x_m = 38.0, y_m = 5.0 }}]
"""


EDGES, STATIONS = places(PREFIX)


@dataclass(frozen=True)
class Case:
    moment: str
    victim: str


def cases(moments: Sequence[str] = MOMENTS) -> tuple[Case, ...]:
    """Raises BadInput. A service that is just being deployed has no destination."""
    for moment in moments:
        if moment not in MOMENTS:
            raise BadInput(f"there is no moment {moment!r}: choose from {', '.join(MOMENTS)}")
    return tuple(
        Case(moment, victim)
        for moment in moments
        for victim in VICTIMS
        if not (moment == DISCOVERY and victim == DESTINATION)
    )


class Site:
    """The lab, its controller, and what is killed and started in it."""

    def __init__(self, directory: Path, topology: Path, failpoints: Path, controller: ControllerClient) -> None:
        self.directory, self.topology, self.failpoints, self.controller = directory, topology, failpoints, controller

    @property
    def address(self) -> str:
        return f"unix:{self.directory}/controller.sock"

    def _pid_file(self, what: str) -> Path:
        return self.directory / "controller.pid" if what == CONTROLLER else self.directory / what / "agent.pid"

    def kill(self, what: str) -> None:
        if pid := processes.read_pid(self._pid_file(what)):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: processes.read_pid(self._pid_file(what)) == 0, f"{what} is dead", REACHED_S)

    def start(self, what: str) -> None:
        plan = recorded(self.directory)
        if plan is None or processes.read_pid(self._pid_file(what)):
            return
        folder = self._pid_file(what).parent
        (process,) = [one for one in processes.lab_processes(plan, self.directory) if one.directory == folder]
        processes.start(process)

    def homes(self) -> list[str]:
        """Where there is a container of the service, by the runtime's own folders: agents may be dead."""
        return [edge for edge in EDGES if (self.directory / edge / "run/runc" / SERVICE).exists()]

    def release(self) -> None:
        """Whoever waits at a point goes on."""
        for path in self.failpoints.iterdir():
            path.unlink()


class Walker:
    """`whimbrel ue` with its application, walking."""

    def __init__(self, site: Site, out: Path) -> None:
        self.out = out
        argv = [sys.executable, "-m", "whimbrel", "ue", "--topology", str(site.topology), "--application", APPLICATION]
        argv += ["--report-to", site.address, "--decide", "network", "--out", str(out)]
        self._running = contextlib.ExitStack()
        self._running.enter_context(companion(argv, end_s=30.0))
        self._read = 0
        self._answered_unix_s: list[float] = []

    def close(self) -> None:
        self._running.close()

    def answered(self, after_unix_s: float = 0.0) -> int:
        """Requests on its connection that were sent after that and answered."""
        data = self.out.read_bytes()[self._read :].rpartition(b"\n")[0] if self.out.exists() else b""
        self._read += len(data)
        for line in data.splitlines():
            if not line:
                continue
            event = msgspec.json.decode(line, type=UserEvent)
            if isinstance(event, RequestTimes) and event.protocol == "tcp":
                pairs = zip(event.sent_unix_s, event.delays_ms, strict=True)
                self._answered_unix_s += [sent for sent, delay in pairs if delay is not None]
        return sum(sent > after_unix_s for sent in self._answered_unix_s)


def wait_until(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Raises StepFailed."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(WhimbrelError):  # whoever is asked may be dead
            if condition():
                return
        if time.monotonic() > deadline:
            raise StepFailed(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(LOOK_EVERY_S)


# --- one kill ------------------------------------------------------------------------------------------------
def measure(site: Site, case: Case, scratch: Path) -> dict[str, Any]:
    """Bring it to that moment, kill, start again, and wait until all is consistent. Raises StepFailed when the moment
    is never reached."""
    out = scratch / f"{case.moment}-{case.victim}.jsonl"
    site.controller.set_planner("orchestrated", "", "auto", case.moment == DISCOVERY)
    walker = Walker(site, out)
    try:
        dead = _reach(site, walker, case)
        site.kill(dead)
        site.release()
        site.start(dead)
        began_s, began_unix_s = time.monotonic(), time.time()
        found = _recovered(site, walker, began_s, began_unix_s)
    finally:
        site.release()
        walker.close()
        _tidy(site)
    return {"moment": case.moment, "victim": case.victim, "process": dead} | found


def _reach(site: Site, walker: Walker, case: Case) -> str:
    """Until that moment; who is to be killed."""
    controller = site.controller
    if case.moment == DISCOVERY:

        def deploying() -> str:
            return next((one.server for one in controller.users() if one.state == "deploying"), "")

        wait_until(deploying, "the service is being deployed", REACHED_S)
        user = controller.user(USER)
        return {CONTROLLER: CONTROLLER, SOURCE: user.server, GATEWAY: user.base_station}[case.victim]
    wait_until(lambda: walker.answered() > ANSWERS, "the user talks to its service", REACHED_S)
    if case.moment in POINTS:
        (site.failpoints / case.moment).touch()
        wait_until((site.failpoints / f"{case.moment}.reached").exists, f"a migration is at {case.moment}", REACHED_S)
        # one that is stopped there has its decision
    moving: list[Decision] = []

    def decided() -> bool:
        moving[:] = [one for one in controller.decisions(USER, 10) if one.state is DecisionState.RUNNING
                     and one.migrates and one.handover_at_unix_s]  # fmt: skip
        if not moving or case.moment != ORDERED:
            return bool(moving)
        return time.time() >= moving[0].handover_at_unix_s - ORDER_S

    wait_until(decided, "a handover that takes the service along is decided", REACHED_S)
    (one,) = moving
    return {CONTROLLER: CONTROLLER, SOURCE: one.from_server, DESTINATION: one.server, GATEWAY: one.base_station}[
        case.victim
    ]


def _recovered(site: Site, walker: Walker, began_s: float, began_unix_s: float) -> dict[str, Any]:
    """When each part held for the first time, and when all did at once, in seconds from the start; None: never."""
    controller = site.controller
    checks: dict[str, Callable[[], object]] = {
        "agents": lambda: all(node.up for node in controller.nodes()),
        "records": lambda: _concluded(controller, began_unix_s),
        "place": lambda: _in_one_place(site),
        "user": lambda: walker.answered(began_unix_s) >= ANSWERS,
    }
    first: dict[str, float | None] = dict.fromkeys(checks)
    whole_s: float | None = None
    while whole_s is None and time.monotonic() - began_s < GIVEN_UP_S:
        holds = True
        for name, check in checks.items():
            try:
                held = bool(check())
            except WhimbrelError:
                held = False
            if held and first[name] is None:
                first[name] = time.monotonic() - began_s
            holds = holds and held
        if holds:
            whole_s = time.monotonic() - began_s
            break
        time.sleep(LOOK_EVERY_S)
    lost = "" if whole_s is not None else ", ".join(name for name, at_s in first.items() if at_s is None) or "together"
    return {"recovered_s": whole_s, "not": lost} | {f"{name}_s": at_s for name, at_s in first.items()}


def _concluded(controller: ControllerClient, began_unix_s: float) -> bool:
    """Nothing that was decided or began before the kill is under way; what came after is the next walk's."""
    decisions = [one for one in controller.decisions(USER, 20) if one.made_unix_s < began_unix_s]
    records = [one for one in controller.migrations(SERVICE, 20) if one.started_unix_s < began_unix_s]
    return not any(one.state is DecisionState.RUNNING for one in decisions) and not any(
        one.outcome is Outcome.RUNNING for one in records
    )


def _in_one_place(site: Site) -> bool:
    """While the next move is under way there are two on purpose: then that one's end is waited for."""
    homes = site.homes()
    return len(homes) == 1 and site.controller.service(SERVICE).node == homes[0] == site.controller.user(USER).server


def _tidy(site: Site) -> None:
    for what in (CONTROLLER, *EDGES, *STATIONS):
        site.start(what)
    controller = site.controller
    wait_until(lambda: all(node.up for node in controller.nodes()), "all agents are back", REACHED_S)
    controller.set_planner(paused=True)
    time.sleep(PLANNED_S)  # a plan that is being made may still decide
    wait_until(
        lambda: not any(one.state is DecisionState.RUNNING for one in controller.decisions(USER, 10)),
        "what was decided is over",
        REACHED_S,
    )
    with contextlib.suppress(BadInput):  # it has none, or is not known any more
        controller.remove_user(USER)
    wait_until(lambda: not controller.services() and not site.homes(), "the service is gone", REACHED_S)


# --- all -----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def site_of(progress: Callable[[str], None]) -> Iterator[tuple[Site, Path]]:
    """A lab of its own, beside any other, and a folder for what users write."""
    image = build_workload(APPLICATION).reference
    with tempfile.TemporaryDirectory(prefix="whimbrel-recovery-") as name:
        scratch = Path(name)
        topology, failpoints = scratch / "topology.toml", scratch / "failpoints"
        topology.write_text(topology_text(PREFIX))
        failpoints.mkdir()
        with (
            inherited(failpoints),
            lab_session(progress, topology=topology, lab_dir=LAB_DIR),
            ControllerClient(f"unix:{LAB_DIR}/controller.sock") as controller,
        ):
            controller.offer(
                Application(
                    name=APPLICATION, image=image, workload=APPLICATION, env=("MEMORY_MB=24",), tasks_per_s=1000.0,
                    ports=("7000/tcp", "7000/udp"),
                )
            )  # fmt: skip
            yield Site(LAB_DIR, topology, failpoints, controller), scratch


def verdict(found: dict[str, Any]) -> str:
    """`PASS`, or `FAIL` with what does not hold."""
    if found.get("error"):
        return f"{FAIL}: {found['error']}"
    if found["recovered_s"] is None:
        return f"{FAIL}: never ({found['not']})"
    return PASS if found["recovered_s"] <= PROMISED_S else f"{FAIL}: > {PROMISED_S:.0f} s"


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    def seconds(name: str) -> str:
        value = found.get(name)
        return "-" if value is None else table.ms(value * 1e3)

    names = ("recovered_s", "agents_s", "records_s", "place_s", "user_s")
    return (found["moment"], found["victim"], *(seconds(name) for name in names), found["promised"])


def run(console: Console, *, moments: Sequence[str] = MOMENTS) -> dict[str, Any]:
    """Every victim at each of the moments; prints a table."""
    chosen = cases(moments)
    found: list[dict[str, Any]] = []

    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    with site_of(tell) as (site, scratch):
        for number, case in enumerate(chosen, 1):
            try:
                one = measure(site, case, scratch)
            except StepFailed as error:
                one = {"moment": case.moment, "victim": case.victim, "recovered_s": None, "error": str(error)}
            one["promised"] = verdict(one)
            found.append(one)
            tell(f"{number} of {len(chosen)}: {case.victim} killed at {case.moment}: {one['promised']}")
    table.show(console, HEADINGS, [cells(one) for one in found])
    return {
        "machine": machine(),
        "parameters": {"promised_s": PROMISED_S, "moments": list(moments)},
        "runs": found,
        "summary": found,
        "recovered_s": spread(one["recovered_s"] for one in found),
    }
