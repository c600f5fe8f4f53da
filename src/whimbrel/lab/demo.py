"""`whimbrel demo`: a service follows its user over three edge nodes while the user keeps talking to it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from whimbrel.bench.probe import Probe
from whimbrel.bench.table import is_good, ms, show_migrations, state_text
from whimbrel.bench.trial import Run, Workload, inside, next_after, sized, trial
from whimbrel.controller.client import ControllerClient
from whimbrel.lab import demo_walk
from whimbrel.lab.commands import LabStatus
from whimbrel.lab.config import DEFAULT_LAB_DIR
from whimbrel.lab.session import lab_session
from whimbrel.lab.topology import load
from whimbrel.model.errors import BadInput
from whimbrel.model.migration import MigrationRecord, Outcome, Progress
from whimbrel.plan.strategies import DEFAULT
from whimbrel.workloads.builder import Image, build

SCENARIOS = {
    "walk": "a user walks past three base stations, its service (200 MB, 500 pages/s rewritten) follows by itself",
    "round-trip": "edge-1 -> edge-2 -> edge-3 -> edge-1, the same service, moved by hand",
}
SERVICE = "demo"
MEMORY_MB = 200
QUIET_S = 1.5
PROMISED_S = 60.0  # from the command to the lab's removal, on two processors, when all is installed


class Teller:
    """Tells what happens: on a terminal the running step stays on one line, elsewhere each step is a line."""

    def __init__(self, console: Console, *, live: bool) -> None:
        self._console = console
        self._begin = time.monotonic()
        self._status = console.status("") if live and console.is_terminal else None
        self.built = False  # the image, which is there the next time

    def __enter__(self) -> Teller:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    @property
    def took_s(self) -> float:
        return time.monotonic() - self._begin

    def done(self, text: str) -> None:
        self._console.print(f"{self.took_s:5.1f} s  {text}", highlight=False, markup=False)

    def now(self, text: str) -> None:
        """What is under way; too fleeting for a log."""
        if self._status is not None:
            self._status.update(text)

    def progress(self, news: Progress) -> None:
        part = f" {news.fraction:.0%}" if 0 <= news.fraction <= 1 else ""
        self.now(f"{news.phase}{part} {news.detail}".rstrip())


def demo_workload() -> Workload:
    return sized(MEMORY_MB, of="demo")


def build_image(teller: Teller, workload: Workload) -> Image:
    """Raises Refused when it cannot be built."""
    teller.now("building the image")

    def building(text: str) -> None:
        teller.built = True
        teller.done(text)

    return build(workload.recipe, progress=building)


def names(status: LabStatus, role: str) -> list[str]:
    return [node.name for node in status.nodes if node.role == role]


def user_place(status: LabStatus) -> tuple[str, ...]:
    """Where the user is, as a command prefix."""
    return inside(next(node.namespace for node in status.nodes if node.role == "user"))


def describe_user(probe: Probe) -> str:
    noise = probe.noise(1)
    udp, tcp = ms(noise.delay_udp_ms.p50 if noise.delay_udp_ms else None), ms(noise.delay_tcp_ms.p50)
    return f"the user talks: UDP answers after {udp}, TCP after {tcp}"


def run_demo(
    teller: Teller,
    runs: list[Run],
    strategy: str = DEFAULT,
    *,
    topology: Path | None = None,
    lab_dir: Path = DEFAULT_LAB_DIR,
) -> None:
    """The whole scenario; each migration is appended to `runs` as soon as it is over.

    Nothing is left behind, also after Ctrl-C, SIGTERM and failure.
    """
    workload = demo_workload()
    image = build_image(teller, workload)
    teller.done("image ready")
    teller.now("bringing up the lab")
    with lab_session(teller.now, topology=topology, lab_dir=lab_dir) as status:
        edges = names(status, "edge")
        teller.done(f"lab up: {', '.join(edges)}, {', '.join(names(status, 'gateway'))}, one user")
        with ControllerClient(status.controller) as controller:
            teller.now("starting the service")
            with trial(
                controller,
                user_place(status),
                service=SERVICE,
                image=image,
                node=edges[0],
                workload=workload,
                quiet_s=QUIET_S,
            ) as subject:
                teller.done(f"service {SERVICE} runs on {edges[0]}: {workload.name}")
                teller.done(describe_user(subject.probe))
                for _ in edges:
                    destination = next_after(edges, subject.at)
                    teller.now(f"{subject.at} -> {destination}")
                    run = subject.move(destination, strategy, teller.progress)
                    runs.append(run)
                    teller.done(sentence(run))
                    if run.record.outcome is not Outcome.DONE:
                        break  # the table tells why
        teller.now("removing the lab")
    teller.done("lab removed")


def run_walk(
    teller: Teller,
    runs: list[Run],
    *,
    topology: Path | None = None,
    strategy: str = DEFAULT,
    lab_dir: Path = DEFAULT_LAB_DIR,
) -> None:
    """The same of a user that walks: the planner decides, handovers and migrations are timed to each other."""
    demo_walk.check_topology(load(topology or demo_walk.TOPOLOGY).radio)
    workload = demo_workload()
    image = build_image(teller, workload)
    teller.done("image ready")
    teller.now("bringing up the lab")
    with lab_session(teller.now, topology=topology or demo_walk.TOPOLOGY, lab_dir=lab_dir) as status:
        (user,) = names(status, "user")
        teller.done(f"lab up: {', '.join(names(status, 'edge'))}, {', '.join(names(status, 'gateway'))}, {user}")
        with (
            ControllerClient(status.controller) as controller,
            demo_walk.served(controller, user),
            demo_walk.walking(topology, user, status.controller),
        ):
            teller.now("the user asks for its service")
            controller.set_planner("orchestrated", "", strategy, False)
            address, edge = demo_walk.deployed(controller, user, image, workload)
            teller.done(f"{user} asked for service {SERVICE}, it runs on {edge}: {workload.name}")
            with workload.probe(address, image, user_place(status)) as probe:
                teller.done(describe_user(probe))
                for decision, run in demo_walk.follow(controller, user, probe, teller.progress, teller.done):
                    runs.append(run)
                    teller.done(demo_walk.sentence(decision))
                    teller.done(sentence(run))
                    if run.record.outcome is not Outcome.DONE:
                        break  # the table tells why
        teller.now("removing the lab")
    teller.done("lab removed")


def sentence(run: Run) -> str:
    record = run.record
    said = f"{record.source} -> {record.destination} {record.outcome}"
    if record.error:
        return f"{said}: {record.error}"
    return f"{said} in {ms(record.total_ms)}, the user waited {ms(record.outage_udp_ms)}"


def how_long(took_s: float, *, built: bool) -> str:
    """One line for the user. A slow machine is no failure: it is only told."""
    said = f"the demo took {took_s:.0f} s"
    if took_s <= PROMISED_S:
        return said
    why = "the image was built first" if built else "is this machine slow, or busy?"
    return f"{said}, more than the usual {PROMISED_S:.0f} s: {why}"


def what_was_wrong(records: Sequence[MigrationRecord], load: float, cpus: int) -> str:
    """One line for the user when the demo ends with exit code 1; empty when all is well."""
    told = []
    for record in records:
        if is_good(record):
            continue
        facts = [f"{record.lost} requests lost"] if record.lost else []
        facts += [f"{record.resets} connections reset"] if record.resets else []
        facts += [] if record.outcome is Outcome.DONE and record.state_ok is not False else [state_text(record)]
        told.append(f"{record.source} -> {record.destination}: {', '.join(facts)}")
    if not told:
        return ""
    busy = f"; this machine is busy (load {load:.1f} on {cpus} processors), try again when it is not"
    return f"not as it should be: {'; '.join(told)}{busy if load > cpus else ''}"


def as_json(runs: Sequence[Run], scenario: str, took_s: float) -> dict[str, Any]:
    return {"scenario": scenario, "workload": demo_workload().name, "took_s": round(took_s, 1),
            "runs": [msgspec.to_builtins(run.record) for run in runs]}  # fmt: skip


def demo(
    *,
    scenario: str = "walk",
    strategy: str = DEFAULT,
    headless: bool = False,
    json_output: bool = False,
    topology: Path | None = None,
    lab_dir: Path = DEFAULT_LAB_DIR,
) -> int:
    """The command; returns its exit code: 1 when a migration failed, lost a request, broke a connection or
    damaged the state. Raises WhimbrelError.

    Progress and table go to standard output; with `json_output` progress goes to standard error and one JSON
    object to standard output. `headless` means no live display.
    """
    if scenario not in SCENARIOS:
        raise BadInput(f"there is no scenario {scenario!r}: there is {', '.join(SCENARIOS)}")
    console = Console(stderr=json_output)
    runs: list[Run] = []
    teller = Teller(console, live=not headless)
    try:
        with teller:
            (run_walk if scenario == "walk" else run_demo)(
                teller, runs, strategy=strategy, topology=topology, lab_dir=lab_dir
            )
        took_s = teller.took_s
        console.print(how_long(took_s, built=teller.built), highlight=False, markup=False, soft_wrap=True)
    finally:
        if runs:
            if not json_output:
                show_migrations(console, [run.record for run in runs])
            if wrong := what_was_wrong([run.record for run in runs], os.getloadavg()[0], os.cpu_count() or 1):
                console.print(wrong, highlight=False, markup=False, soft_wrap=True)
    if json_output:
        json.dump(as_json(runs, scenario, took_s), sys.stdout, indent=2)
        sys.stdout.write("\n")
    return 0 if all(is_good(run.record) for run in runs) else 1
