"""How a cell becomes samples: a fresh service, a client that talks to it, migrations, the client's verdict."""

from __future__ import annotations

import time
from collections.abc import Generator

from whimbrel.bench.baseline import Program
from whimbrel.bench.probe import Probe, measured
from whimbrel.bench.trial import Workload, next_after, trial
from whimbrel.client.report import Report
from whimbrel.experiments.model import By, Cell
from whimbrel.experiments.scripted import ADDRESS, SCRIPTS, scripted
from whimbrel.experiments.site import Site
from whimbrel.model.migration import MigrationRecord
from whimbrel.model.service import ServiceSpec
from whimbrel.plan.strategies import names
from whimbrel.workloads import catalogue
from whimbrel.workloads.builder import Image

SERVICE = "experiment"
QUIET_S = 1.0
Moved = tuple[MigrationRecord, Report]


def why_not(cell: Cell) -> str:
    """Why a cell cannot be measured with this version, in one line; empty: it can."""
    if cell.workload not in catalogue.names():
        return f"there is no workload {cell.workload!r} yet"
    if cell.strategy not in names():
        return f"this version has no strategy {cell.strategy!r} yet"
    if cell.by is By.SCRIPT:
        return "" if (SCRIPTS / f"{cell.strategy}.sh").is_file() else f"there is no script for {cell.strategy}"
    if cell.engine != "runc" and "engine" not in ServiceSpec.__struct_fields__:
        return f"this version has no engine {cell.engine!r} yet"
    return ""


def workload_of(cell: Cell) -> Workload:
    return Workload(catalogue.find(cell.workload), cell.settings, cell.name)


def moves(site: Site, cell: Cell, image: Image, start: str) -> Generator[Moved, None, None]:
    """A service on the node `start`, moved `cell.moves` times. Raises WhimbrelError when it cannot even be begun."""
    if cell.by is By.SCRIPT:
        yield _by_script(site, cell, image, start)
        return
    workload = workload_of(cell)
    with trial(
        site.controller, site.user, service=SERVICE, image=image, node=start, workload=workload, quiet_s=QUIET_S
    ) as subject:
        for _ in range(cell.moves):
            time.sleep(cell.work_s)
            run = subject.move(next_after(site.edges, subject.at), cell.strategy)
            yield run.record, run.report


def _by_script(site: Site, cell: Cell, image: Image, start: str) -> Moved:
    workload = workload_of(cell)
    program = Program(image.umoci, workload.recipe.command, workload.env, workload.recipe.workdir)
    with scripted(site, program, start) as container, _talk(workload, image, site) as probe:
        time.sleep(cell.work_s)
        probe.quiet()
        time.sleep(QUIET_S)
        probe.begin()
        record = container.move(cell.strategy, next_after(site.edges, start), cell.name)
        report = probe.end()
        return measured(record, report), report


def _talk(workload: Workload, image: Image, site: Site) -> Probe:
    return workload.probe(ADDRESS.split("/")[0], image, site.user)
