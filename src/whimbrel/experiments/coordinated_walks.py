"""The paper `coordinated`'s experiment (V-A) on the lab: its testbed, a user that walks to and fro, a planner that
decides. Each cell is a walk with a service of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from whimbrel.bench.companion import companion
from whimbrel.controller.client import ControllerClient
from whimbrel.experiments.coordinated_facts import Walk, delay_facts, downtime_facts, walk_facts, walk_of
from whimbrel.experiments.model import Cell, Facts, Staged
from whimbrel.experiments.site import Place
from whimbrel.lab.commands import Report
from whimbrel.lab.session import lab_session
from whimbrel.model.application import Application
from whimbrel.model.decision import DecisionState
from whimbrel.model.errors import StepFailed, WhimbrelError
from whimbrel.model.radio import UserEvent
from whimbrel.workloads import catalogue
from whimbrel.workloads.builder import Image

USER = "ue-1"
BEFORE = "before"
SETTLE_S = 60.0
END_S = 30.0


@dataclass(frozen=True)
class Gait:
    """`task_bytes` and `cpus` of an application; `speed_m_per_s` of its user, the paper's."""

    speed_m_per_s: float
    task_bytes: float
    cpus: float
    tasks_per_s: float


GAITS = {
    "simple": Gait(1.0, 100.0, 0.05, 50.0),
    "face": Gait(0.5, 30e3, 0.5, 5.0),
    "objects": Gait(0.5, 60e3, 0.5, 3.0),
}


@contextlib.contextmanager
def stage(place: Place, tell: Report, out: Path, *, quick: bool) -> Iterator[Staged]:
    """The paper's testbed, up until the end of the block. What it gives measures one cell."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-experiment-") as folder:
        topology = Path(folder, "topology.toml")
        topology.write_text(topology_text(place.prefix))
        with (
            lab_session(tell, topology=topology, lab_dir=place.lab_dir) as status,
            ControllerClient(status.controller) as controller,
        ):
            edges = [node.name for node in status.nodes if node.role == "edge"]
            ready: set[str] = set()

            def measure(cell: Cell, image: Image) -> Iterator[Facts]:
                if cell.workload not in ready:
                    bring(status.controller, cell, image, edges, tell)
                    ready.add(cell.workload)
                walk = walked(controller, status.controller, cell, image, Path(folder), length_of(cell, quick=quick))
                (out / f"walk-{cell.workload}-{cell.strategy}.json").write_bytes(msgspec.json.encode(walk))
                yield delay_facts(walk) | walk_facts(walk)
                yield from downtime_facts(walk)

            yield measure


@dataclass(frozen=True)
class Length:
    """How long a walk is at most, and how fast the user goes (0: as the paper's). It ends `after_s` after so many
    decisions are over, if any number is named."""

    seconds: float
    speed_m_per_s: float = 0.0
    decisions: int = 0
    after_s: float = 3.0


WHOLE = Length(1600.0)


def length_of(cell: Cell, *, quick: bool) -> Length:
    """Quick: simple, which moves in seconds, meets a few handovers; the others, of which a minute's worth of memory
    crosses the paper's links, one."""
    if not quick:
        return WHOLE
    return Length(21.0, 2.0) if cell.workload == "simple" else Length(32.0, 1.5, decisions=1)


def topology_text(prefix: str) -> str:
    """The shipped topology, under names of its own."""
    text = resources.files("whimbrel.lab").joinpath("topologies/coordinated.toml").read_text()
    for name in ("edge-", "bs-", "pop-"):
        text = text.replace(f'"{name}', f'"{prefix}-{name}')
    text = text.replace('name = "cloud"', f'name = "{prefix}-cloud"')
    return text.replace('name = "coordinated"', f'name = "experiment"\nprefix = "{prefix}-"', 1)


def bring(address: str, cell: Cell, image: Image, edges: list[str], tell: Report) -> None:
    """The image to all servers, as the paper's are before: a migration is not to wait for it."""
    tell(f"{cell.workload}: to all servers")

    def run_once(edge: str) -> None:
        service = f"{BEFORE}-{edge}"
        with ControllerClient(address) as controller:
            controller.run_service(service, image.reference, edge, workload=cell.workload)
            controller.remove_service(service)

    with ThreadPoolExecutor(len(edges)) as pool:
        list(pool.map(run_once, edges))


def walked(controller: ControllerClient, address: str, cell: Cell, image: Image, folder: Path, length: Length) -> Walk:
    """One user's walk; its service is gone afterwards."""
    gait, recipe = GAITS[cell.workload], catalogue.find(cell.workload)
    controller.set_planner(cell.strategy, "", "auto", False)
    env = tuple(f"{name}={value}" for name, value in cell.settings.items())
    controller.offer(
        Application(
            name=cell.workload, image=image.reference, ports=recipe.ports, workload=cell.workload, env=env,
            cpus=gait.cpus, task_bytes=gait.task_bytes, tasks_per_s=gait.tasks_per_s,
        )
    )  # fmt: skip
    topology, out = folder / f"{cell.workload}.toml", folder / "user.jsonl"
    lab = (folder / "topology.toml").read_text()
    speed = length.speed_m_per_s or gait.speed_m_per_s
    topology.write_text(lab.replace("speed_m_per_s = 0.5", f"speed_m_per_s = {speed:g}"))
    begin_unix_s = time.time()
    argv = [sys.executable, "-m", "whimbrel", "ue", "--topology", str(topology), "--user", USER, "--out", str(out)]
    argv += ["--application", cell.workload, "--report-to", address, "--decide", "network"]
    try:
        with companion(argv, stderr=subprocess.PIPE, end_s=END_S) as user:
            walk_on(user, controller, length, begin_unix_s)
            if user.returncode is not None:
                said = user.stderr.read().decode(errors="replace").strip() if user.stderr else ""
                raise StepFailed(f"the user ended before its walk did (exit code {user.returncode}): {said}")
            controller.set_planner(paused=True)
            until_settled(controller)
    finally:
        with contextlib.suppress(WhimbrelError):
            until_settled(controller)
            controller.remove_user(USER)
    decisions = [one for one in controller.decisions(USER, 10_000) if one.made_unix_s >= begin_unix_s]
    return walk_of(cell.workload, cell.strategy, events(out), decisions)


def walk_on(user: subprocess.Popen[bytes], controller: ControllerClient, length: Length, since_unix_s: float) -> None:
    """Until the walk is long enough, or the user ends."""
    end = time.monotonic() + length.seconds
    while (left_s := end - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            user.wait(min(left_s, 1.0 if length.decisions else left_s))
            return
        made = controller.decisions(USER, 10) if length.decisions else []
        ended = [one for one in made if one.made_unix_s >= since_unix_s and one.state is not DecisionState.RUNNING]
        if length.decisions and len(ended) >= length.decisions:
            controller.set_planner(paused=True)  # another handover would be waited for, with its memory
            end = min(end, max(one.ended_unix_s for one in ended) - time.time() + length.after_s + time.monotonic())


def until_settled(controller: ControllerClient) -> None:
    """What was decided is carried out. Raises StepFailed when that takes too long."""
    deadline = time.monotonic() + SETTLE_S
    while any(one.state is DecisionState.RUNNING for one in controller.decisions(USER, 5)):
        if time.monotonic() > deadline:
            raise StepFailed("a migration does not come to its end: see the controller's log")
        time.sleep(0.2)


def events(path: Path) -> Iterator[UserEvent]:
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=UserEvent)
