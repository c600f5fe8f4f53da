"""How a cell becomes samples: a fresh service, a client that talks to it, migrations, the client's verdict."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator

from whimbrel.bench.baseline import Program
from whimbrel.bench.probe import Probe, measured
from whimbrel.bench.roots import empty, fill
from whimbrel.bench.trial import Trial, Workload, host_of, next_after
from whimbrel.client.report import Report
from whimbrel.experiments import systems
from whimbrel.experiments.model import By, Cell
from whimbrel.experiments.scripted import ADDRESS, SCRIPTS, scripted
from whimbrel.experiments.site import Site
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRecord
from whimbrel.model.service import ServiceStatus
from whimbrel.plan.strategies import names
from whimbrel.workloads import catalogue
from whimbrel.workloads.builder import Image

SERVICE = "experiment"
QUIET_S = 1.0
SHARED = "shared"  # the strategy that needs storage which both nodes mount
Moved = tuple[MigrationRecord, Report]


def why_not(cell: Cell) -> str:
    """Why a cell cannot be measured with this version or on this machine, in one line; empty: it can."""
    if cell.workload not in catalogue.names():
        return f"there is no workload {cell.workload!r} yet"
    if cell.strategy not in names():
        return f"this version has no strategy {cell.strategy!r} yet"
    if cell.by is By.SCRIPT:
        return "" if (SCRIPTS / f"{cell.strategy}.sh").is_file() else f"there is no script for {cell.strategy}"
    if cell.system:
        return systems.missing()
    return ""


def needs_storage(cell: Cell) -> bool:
    return cell.strategy == SHARED


def workload_of(cell: Cell) -> Workload:
    return Workload(catalogue.find(cell.workload), cell.settings, cell.name)


def moves(site: Site, cell: Cell, image: Image, start: str) -> Generator[Moved, None, None]:
    """A service on the node `start`, moved `cell.moves` times. Raises WhimbrelError when it cannot even be begun."""
    if cell.by is By.SCRIPT:
        yield _by_script(site, cell, image, start)
        return
    workload = workload_of(cell)
    with (
        _running(site, cell, workload, image, start) as status,
        workload.probe(host_of(status), image, site.user) as talk,
    ):
        subject = Trial(site.controller, SERVICE, start, talk, QUIET_S)
        for _ in range(cell.moves):
            time.sleep(cell.work_s)
            run = subject.move(next_after(site.edges, subject.at), cell.strategy)
            yield run.record, run.report


@contextlib.contextmanager
def _running(site: Site, cell: Cell, workload: Workload, image: Image, start: str) -> Iterator[ServiceStatus]:
    if cell.system:
        with systems.system_container(site, SERVICE, cell.system, workload, image, start) as status:
            yield status
        return
    recipe = workload.recipe
    status = site.controller.run_service(
        SERVICE,
        image.reference,
        start,
        ports=recipe.ports,
        env=workload.env,
        workload=workload.name,
        shared=needs_storage(cell),
    )
    try:
        if cell.root_bytes:
            fill(site.root(start, SERVICE, shared=needs_storage(cell)), cell.root_bytes)
        yield status
    finally:
        if needs_storage(cell):  # on the server: some thousand files over the network take an agent minutes
            empty(site.root(start, SERVICE, shared=True))
        # what went wrong in the block is what the user must see, not that the service is gone with it
        with contextlib.suppress(WhimbrelError):
            site.controller.remove_service(SERVICE)


def _by_script(site: Site, cell: Cell, image: Image, start: str) -> Moved:
    workload = workload_of(cell)
    program = Program(image.umoci, workload.recipe.command, workload.env, workload.recipe.workdir)
    host = ADDRESS.split("/")[0]
    with (
        scripted(site, program, start, shared=needs_storage(cell), root_bytes=cell.root_bytes) as container,
        _talk(workload, host, image, site) as probe,
    ):
        time.sleep(cell.work_s)
        probe.quiet()
        time.sleep(QUIET_S)
        probe.begin()
        record = container.move(cell.strategy, next_after(site.edges, start), cell.name)
        report = probe.end()
        return measured(record, report), report


def _talk(workload: Workload, host: str, image: Image, site: Site) -> Probe:
    return workload.probe(host, image, site.user)
