"""A workload under test and its user: what the demo and the benchmarks share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from whimbrel.bench.probe import Probe, measured
from whimbrel.client.report import Report
from whimbrel.controller.client import ControllerClient
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome, Progress
from whimbrel.model.service import ServiceStatus
from whimbrel.workloads import catalogue
from whimbrel.workloads.builder import Image
from whimbrel.workloads.recipe import Recipe

OnProgress = Callable[[Progress], None]


def inside(namespace: str) -> tuple[str, ...]:
    """The command prefix that runs a program in a named network namespace."""
    return ("nsenter", f"--net=/run/netns/{namespace}")


@dataclass(frozen=True)
class Workload:
    """A recipe, and what a run tells the service otherwise than the recipe does; `label` names it in tables."""

    recipe: Recipe
    settings: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.recipe.name

    @property
    def env(self) -> tuple[str, ...]:
        """All of it, as the service's environment."""
        return tuple(f"{name}={value}" for name, value in {**self.recipe.env, **self.settings}.items())

    def probe(self, host: str, image: Image, prefix: Sequence[str]) -> Probe:
        """The client that verifies this workload, not started yet."""
        return Probe(self.recipe, host, settings=self.settings, data=image.client_dir, prefix=prefix)


def named(name: str) -> Workload:
    """A workload of the catalogue as its recipe says. Raises BadInput."""
    return Workload(catalogue.find(name))


def sized(memory_mb: int, dirty_pages_per_s: int = 500, of: str = "memory") -> Workload:
    """The service with memory in one size; `dirty_pages_per_s` pages of 4 KiB are rewritten each second."""
    size = f"{memory_mb // 1024} GB" if memory_mb % 1024 == 0 else f"{memory_mb} MB"
    settings = {"MEMORY_MB": str(memory_mb), "DIRTY_PAGES_PER_S": str(dirty_pages_per_s)}
    return Workload(catalogue.find(of), settings, f"{size}, {dirty_pages_per_s} pages/s")


def host_of(status: ServiceStatus) -> str:
    return status.spec.address.split("/")[0]


@dataclass(frozen=True)
class Run:
    """One migration: its record with what the client saw in it, and all else that the client saw."""

    record: MigrationRecord
    report: Report


@dataclass
class Trial:
    """A running service, the node it is `at`, and a client that talks to it."""

    controller: ControllerClient
    service: str
    at: str
    probe: Probe
    quiet_s: float = 2.0

    def move(self, to: str, strategy: str, on_progress: OnProgress | None = None) -> Run:
        """A quiet phase, the migration, the client's verdict. Raises what refuses the start."""
        self.probe.quiet()
        time.sleep(self.quiet_s)
        self.probe.begin()
        record = self.controller.migrate(self.service, to, strategy=strategy, on_progress=on_progress)
        report = self.probe.end()
        run = Run(measured(record, report), report)
        if record.outcome is Outcome.DONE:
            self.at = to
        return run


@contextlib.contextmanager
def trial(
    controller: ControllerClient,
    user: Sequence[str],
    *,
    service: str,
    image: Image,
    node: str,
    workload: Workload,
    quiet_s: float = 2.0,
) -> Iterator[Trial]:
    """Run the workload on `node`, talk to it from the user's place (a command prefix); both end with the block."""
    status = controller.run_service(
        service, image.reference, node, ports=workload.recipe.ports, env=workload.env, workload=workload.name
    )
    try:
        with workload.probe(host_of(status), image, user) as probe:
            yield Trial(controller, service, node, probe, quiet_s)
    finally:
        # what went wrong in the block is what the user must see, not that the service is gone with it
        with contextlib.suppress(WhimbrelError):
            controller.remove_service(service)


def next_after(nodes: Sequence[str], node: str) -> str:
    """The node after `node`, the first after the last: the way of every round trip."""
    return nodes[(nodes.index(node) + 1) % len(nodes)]
