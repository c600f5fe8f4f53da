"""The demo's walk: a user passes three base stations, and its service follows by itself (`coordinated`, V-A).

Nobody says here what is to move when: the user reports what it hears, the controller's planner decides.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from whimbrel.bench.companion import companion
from whimbrel.bench.probe import Probe, measured
from whimbrel.bench.trial import Run, Workload
from whimbrel.controller.client import ControllerClient
from whimbrel.model.application import Application
from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.errors import BadInput, StepFailed, WhimbrelError
from whimbrel.model.migration import Progress
from whimbrel.workloads.builder import Image

TOPOLOGY = Path("walk")
APPLICATION = "demo"
MOVES = 3
LONGEST_S = 40.0
"""From one handover to the next, on a machine that is slow."""
LOOK_EVERY_S = 0.1
TASKS_PER_S = 1000.0

Tell = Callable[[str], None]


@contextlib.contextmanager
def walking(topology: Path | None, user: str, controller: str) -> Iterator[subprocess.Popen[bytes]]:
    """The user's equipment, on its way until the end of the block; the controller decides on its handovers."""
    argv = [sys.executable, "-m", "whimbrel", "ue", "--topology", str(topology or TOPOLOGY), "--user", user]
    argv += ["--report-to", controller, "--decide", "network", "--interval", "100ms", "--out", "/dev/null"]
    with tempfile.TemporaryFile() as said, companion(argv, stderr=said) as process:
        yield process
        if process.poll() is not None:
            said.seek(0)
            raise StepFailed(f"the user ended (exit code {process.returncode}): {said.read().decode().strip()}")


def deployed(controller: ControllerClient, user: str, image: Image, workload: Workload) -> tuple[str, str]:
    """Ask for the service in the user's name; its address and the edge that it was put on."""
    deadline = time.monotonic() + LONGEST_S
    while not any(one.user == user and one.base_station for one in controller.users()):
        if time.monotonic() > deadline:
            raise StepFailed(f"{user} does not report: see the controller's log")
        time.sleep(LOOK_EVERY_S)
    controller.offer(
        Application(
            name=APPLICATION,
            image=image.reference,
            ports=workload.recipe.ports,
            env=workload.env,
            workload=workload.name,
            tasks_per_s=TASKS_PER_S,
        )
    )
    session = controller.discover(user, APPLICATION)
    return session.address, session.server


def follow(
    controller: ControllerClient, user: str, probe: Probe, progress: Callable[[Progress], None], tell: Tell
) -> Iterator[tuple[Decision, Run]]:
    """Each handover that takes the service along, with what the client saw of it, until there were enough."""
    done: set[str] = set()
    for _ in range(MOVES):
        probe.quiet()
        begun = _next(controller, user, done, progress)
        tell(begun.reason.partition(";")[0])
        probe.begin()
        over = _ended(controller, begun.id)
        report = probe.end()
        done.add(begun.id)
        if not over.migration:
            raise StepFailed(f"the service of {user} was not moved: {over.error or 'no reason given'}")
        yield over, Run(measured(controller.migration(over.migration), report), report)


def _next(controller: ControllerClient, user: str, done: set[str], progress: Callable[[Progress], None]) -> Decision:
    """The next decision that moves the service."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        for one in controller.decisions(user, 10):
            if one.migrates and one.id not in done:
                return one
        where = controller.user(user)
        progress(Progress(migration="", phase="walking", detail=f"{user} is at {where.base_station}"))
        time.sleep(LOOK_EVERY_S)
    raise StepFailed(f"nothing was decided for {user} within {LONGEST_S:.0f} s: see the controller's log")


def _ended(controller: ControllerClient, decision_id: str) -> Decision:
    deadline = time.monotonic() + LONGEST_S
    while (one := controller.decision(decision_id)).state is DecisionState.RUNNING:
        if time.monotonic() > deadline:
            raise StepFailed(f"decision {decision_id} was not carried out within {LONGEST_S:.0f} s")
        time.sleep(LOOK_EVERY_S / 2)
    return one


def sentence(decision: Decision) -> str:
    """What the radio did, and how the two were timed."""
    times = decision.measured
    if times is None:
        return decision.error
    return (
        f"{decision.user} is at {decision.base_station}: radio away {times.handover_ms:.0f} ms, "
        f"service {times.migration_ms:.0f} ms, together {times.interruption_ms:.0f} ms"
    )


@contextlib.contextmanager
def served(controller: ControllerClient, user: str) -> Iterator[None]:
    """The user's service is gone after the block."""
    try:
        yield
    finally:
        # what went wrong in the block is what is to be seen; what is under way ends with the lab
        with contextlib.suppress(WhimbrelError):
            controller.set_planner(paused=True)
            controller.remove_user(user)


def check_topology(radio: object) -> None:
    """Raises BadInput."""
    if radio is None:
        raise BadInput("the walk needs a topology with [radio]: name one, or choose --scenario round-trip")
