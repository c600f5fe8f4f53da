"""`whimbrel bench downtime`: what a user notices of a migration, side by side with the plain way.

For each workload: migrations round the lab's edge nodes with each strategy, then the baseline round the same nodes,
all seen by the same client in the same place. Without other words the workload is `memory`, in several sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress as Bar

from whimbrel.bench import report, table
from whimbrel.bench.baseline import Baseline, Program
from whimbrel.bench.probe import measured
from whimbrel.bench.trial import Run, Workload, inside, named, next_after, sized, trial
from whimbrel.controller.client import ControllerClient
from whimbrel.lab.commands import LabStatus
from whimbrel.lab.config import DEFAULT_LAB_DIR
from whimbrel.lab.session import lab_session
from whimbrel.model.errors import BadInput, WhimbrelError
from whimbrel.plan.strategies import DEFAULT, check_name
from whimbrel.workloads import catalogue
from whimbrel.workloads.builder import Image, build

BASELINE_ADDRESS = "10.77.250.250/16"  # above the addresses that the controller gives out
SERVICE = "bench"
NOISE_WINDOWS = 10
SIZED = "memory"  # the workload that comes in sizes


@dataclass(frozen=True)
class Options:
    """`sizes_mb` and `dirty_pages_per_s` are for the workload `memory`. The baseline runs as often as each strategy."""

    workload_names: tuple[str, ...] = (SIZED,)
    sizes_mb: tuple[int, ...] = (20, 200, 1024)
    strategies: tuple[str, ...] = (DEFAULT,)
    migrations: int = 10
    baseline: bool = True
    dirty_pages_per_s: int = 500
    quiet_s: float = 1.5
    topology: Path | None = None
    lab_dir: Path = DEFAULT_LAB_DIR

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            check_name(strategy)
        if self.migrations < 1 or not self.workload_names or not self.sizes_mb or min(self.sizes_mb) < 1:
            raise BadInput("nothing to measure: give a workload, at least one migration and sizes of at least 1 MB")
        for name in self.workload_names:
            catalogue.find(name)

    def workloads(self) -> list[Workload]:
        found: list[Workload] = []
        for name in self.workload_names:
            found += [sized(size, self.dirty_pages_per_s) for size in self.sizes_mb] if name == SIZED else [named(name)]
        return found

    @property
    def total(self) -> int:
        """All migrations that there will be."""
        return len(self.workloads()) * (len(self.strategies) + self.baseline) * self.migrations


@dataclass
class Benchmark:
    """One run of the benchmark: what it found until now, and whom it tells."""

    options: Options
    status: LabStatus
    images: Mapping[str, Image]
    tell: Callable[[str], None]
    runs: list[Run] = field(default_factory=list)
    noise: dict[str, Any] = field(default_factory=dict)

    @property
    def edges(self) -> list[str]:
        return [node.name for node in self.status.nodes if node.role == "edge"]

    @property
    def user(self) -> tuple[str, ...]:
        return inside(next(node.namespace for node in self.status.nodes if node.role == "user"))

    def measure(self) -> None:
        with ControllerClient(self.status.controller) as controller:
            for workload in self.options.workloads():
                for strategy in self.options.strategies:
                    self.ours(controller, workload, strategy)
                if self.options.baseline:
                    self.plain(workload)

    def note(self, run: Run) -> None:
        self.runs.append(run)
        record = run.record
        said = ", ".join(
            (
                f"{record.workload}: {record.strategy} {record.source} -> {record.destination}",
                f"outage UDP {table.ms(record.outage_udp_ms)}, TCP {table.ms(record.outage_tcp_ms)}",
                f"lost {record.lost}, resets {record.resets}, state {table.state_text(record)}",
            )
        )
        self.tell(said)

    def ours(self, controller: ControllerClient, workload: Workload, strategy: str) -> None:
        with trial(
            controller,
            self.user,
            service=SERVICE,
            image=self.images[workload.recipe.name],
            node=self.edges[0],
            workload=workload,
            quiet_s=self.options.quiet_s,
        ) as subject:
            if not self.noise:
                self.tell("measuring the client itself, nothing moves")
                self.noise = msgspec.to_builtins(subject.probe.noise(NOISE_WINDOWS))
            for _ in range(self.options.migrations):
                self.note(subject.move(next_after(self.edges, subject.at), strategy))

    def plain(self, workload: Workload) -> None:
        edges = [node for node in self.status.nodes if node.role == "edge"]
        places = {node.name: (node.address, Path("/run/netns", node.namespace)) for node in edges}
        gateway = next(node.overlay_address for node in self.status.nodes if node.role == "gateway")
        image = self.images[workload.recipe.name]
        program = Program(image.umoci, workload.recipe.command, workload.env, workload.recipe.workdir)
        with Baseline(places, program, BASELINE_ADDRESS, gateway) as baseline:
            baseline.start(self.edges[0])
            with workload.probe(BASELINE_ADDRESS.split("/")[0], image, self.user) as probe:
                for _ in range(self.options.migrations):
                    probe.quiet()
                    time.sleep(self.options.quiet_s)
                    probe.begin()
                    record = baseline.move(next_after(self.edges, baseline.at), workload.name)
                    report = probe.end()
                    self.note(Run(measured(record, report), report))


def document(options: Options, runs: Sequence[Run], noise: dict[str, Any]) -> dict[str, Any]:
    """The result as DESIGN fixes it; each run also has what else the client saw, as `client`."""
    parameters = {
        "workloads": list(options.workload_names),
        "sizes_mb": list(options.sizes_mb),
        "strategies": [str(strategy) for strategy in options.strategies],
        "migrations": options.migrations,
        "dirty_pages_per_s": options.dirty_pages_per_s,
        "quiet_s": options.quiet_s,
        "baseline": "runc checkpoint + tar over TCP + runc restore" if options.baseline else None,
        "udp_requests_per_s": 1000,
        "tcp_requests_per_s": 1000,
    }
    result = report.document(parameters, [run.record for run in runs])
    for entry, run in zip(result["runs"], runs, strict=True):
        seen = msgspec.to_builtins(run.report)
        entry["client"] = {**seen, **seen.pop("detail")}
    return {**result, "noise": noise}


def show(console: Console, result: dict[str, Any]) -> None:
    """The summary, and where the time goes."""
    rows = [report.summary_cells(entry) for entry in result["summary"]]
    bad = [
        entry["failed"] or not entry["state_ok"] or entry["promised"].startswith(report.FAIL)
        for entry in result["summary"]
    ]
    table.show(console, report.HEADINGS, rows, ["bold red" if one else "" for one in bad])
    phases = [
        (entry["workload"], entry["strategy"], indented(phase), table.ms(duration))
        for entry in result["summary"]
        for phase, duration in entry["phases_ms"].items()
    ]
    if phases:
        console.print("Medians, phase by phase:", highlight=False)
        table.show(console, ("service", "strategy", "phase", "time"), phases)
    faults = [
        (entry["workload"], entry["strategy"], *(f"{entry['faults'][part]:.0f}" for part in ("p50", "p95")),
         *(table.ms(entry["fault_ms"][part]) for part in ("p50", "p95")))
        for entry in result["summary"]
        if entry["faults"] and entry["faults"]["p95"]
    ]  # fmt: skip
    if faults:
        console.print("Touches of memory that was not in place yet, and answering all of them:", highlight=False)
        table.show(console, ("service", "strategy", "faults p50", "p95", "answered in p50", "p95"), faults)
    if noise := result["noise"]:
        figures = "; ".join(
            f"outage {protocol.upper()} " + ", ".join(f"{part} {table.ms(spread[part])}" for part in spread)
            for protocol in ("udp", "tcp")
            if (spread := noise[f"outage_{protocol}_ms"])
        )
        windows = noise["windows"]
        console.print(f"Client alone, {windows} windows of 1 s: {figures}", highlight=False, soft_wrap=True)


def indented(phase: str) -> str:
    """``freeze.dump`` -> ``  dump``: a part of a phase stands below it."""
    *above, name = phase.split(".")
    return "  " * len(above) + name


@contextmanager
def telling(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on a terminal, numbered lines elsewhere."""
    if not console.is_terminal:
        yield lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("migrations", total=total)

        def tell(text: str) -> None:
            bar.console.print(text, highlight=False, markup=False)
            bar.advance(task, 1 if "->" in text else 0)

        yield tell


def run(options: Options, console: Console) -> dict[str, Any]:
    """Measure in the lab that is up, or in one of our own; returns the document and prints the tables.

    Raises WhimbrelError when something cannot be measured; what was measured until then is printed.
    """
    result: dict[str, Any] = {}
    runs: list[Run] = []
    noise: dict[str, Any] = {}
    try:
        with telling(console, options.total) as tell:
            images = {name: build(catalogue.find(name), progress=tell) for name in options.workload_names}
            with lab_session(tell, reuse=True, topology=options.topology, lab_dir=options.lab_dir) as status:
                benchmark = Benchmark(options, status, images, tell, runs, noise)
                try:
                    benchmark.measure()
                finally:
                    noise = benchmark.noise
    except (WhimbrelError, KeyboardInterrupt):
        if runs:
            show(console, document(options, runs, noise))
        raise
    result = document(options, runs, noise)
    show(console, result)
    return result
