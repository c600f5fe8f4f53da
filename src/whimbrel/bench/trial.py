"""A service under test and its user: what the demo and the benchmarks share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from whimbrel.bench.probe import Probe, Window, measured
from whimbrel.controller.client import ControllerClient
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome, Progress
from whimbrel.model.service import ServiceStatus

PORT = 7000
IMAGE_DIR = Path("/var/cache/whimbrel/demo-image")  # kept: building it needs the distribution's archive
COMMAND = ("/usr/bin/python3", "/srv/service.py")
OnProgress = Callable[[Progress], None]


def inside(namespace: str) -> tuple[str, ...]:
    """The command prefix that runs a program in a named network namespace."""
    return ("nsenter", f"--net=/run/netns/{namespace}")


@dataclass(frozen=True)
class Workload:
    """The demo service in one size; `dirty_pages_per_s` pages of 4 KiB are rewritten each second."""

    memory_mb: int
    dirty_pages_per_s: int = 500

    @property
    def name(self) -> str:
        size = f"{self.memory_mb // 1024} GB" if self.memory_mb % 1024 == 0 else f"{self.memory_mb} MB"
        return f"{size}, {self.dirty_pages_per_s} pages/s"

    @property
    def env(self) -> tuple[str, ...]:
        return (
            f"PORT={PORT}",
            f"MEMORY_MB={self.memory_mb}",
            f"DIRTY_PAGES_PER_S={self.dirty_pages_per_s}",
        )

    @property
    def options(self) -> tuple[str, ...]:
        """The same as `env`, as arguments of the program."""
        sizes = ("--memory-mb", str(self.memory_mb), "--dirty-pages-per-s", str(self.dirty_pages_per_s))
        return ("--port", str(PORT), *sizes)

    def service_address(self, status: ServiceStatus) -> str:
        return status.spec.address.split("/")[0]


@dataclass(frozen=True)
class Run:
    """One migration: its record with what the client saw in it, and all else that the client saw."""

    record: MigrationRecord
    window: Window


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
        window = self.probe.end()
        run = Run(measured(record, window, self.probe.digest_ok()), window)
        if record.outcome is Outcome.DONE:
            self.at = to
        return run


@contextlib.contextmanager
def trial(
    controller: ControllerClient,
    user: Sequence[str],
    *,
    service: str,
    image: str,
    node: str,
    workload: Workload,
    quiet_s: float = 2.0,
) -> Iterator[Trial]:
    """Run the demo service on `node`, talk to it from the user's place (a command prefix); both end with the
    block. `image` is a reference as `service run` takes it."""
    status = controller.run_service(
        service, image, node, ports=(f"{PORT}/tcp", f"{PORT}/udp"), env=workload.env, workload=workload.name
    )
    try:
        with Probe(workload.service_address(status), PORT, workload.memory_mb, prefix=user) as probe:
            yield Trial(controller, service, node, probe, quiet_s)
    finally:
        # what went wrong in the block is what the user must see, not that the service is gone with it
        with contextlib.suppress(WhimbrelError):
            controller.remove_service(service)


def next_after(nodes: Sequence[str], node: str) -> str:
    """The node after `node`, the first after the last: the way of every round trip."""
    return nodes[(nodes.index(node) + 1) % len(nodes)]
