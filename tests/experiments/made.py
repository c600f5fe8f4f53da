"""Samples and experiments for tests: what a run would have left."""

from __future__ import annotations

from collections.abc import Sequence

from whimbrel.experiments.model import By, Cell, Drawing, Experiment, Figure, Link, Sample, Stack
from whimbrel.experiments.quantities import LOST, OUTAGE_TCP, STAGED_COPY, STAGED_DUMP
from whimbrel.experiments.rows import no_slower
from whimbrel.model.migration import MigrationRecord, Outcome, Phase

OURS, SCRIPT = Cell("blank", "tmpfs"), Cell("blank", "tmpfs", by=By.SCRIPT)


def record(outage_ms: float, *, dump_ms: float = 20.0, copy_ms: float = 5.0, lost: int = 0) -> MigrationRecord:
    phases = (
        Phase(name="freeze.dump", start_ms=0.0, duration_ms=dump_ms),
        Phase(name="freeze.copy", start_ms=dump_ms, duration_ms=copy_ms),
    )
    return MigrationRecord(
        id="1", service="s", source="a", destination="b", strategy="tmpfs", outcome=Outcome.DONE,
        outage_tcp_ms=outage_ms, freeze_ms=dump_ms + copy_ms, lost=lost, phases=phases,
    )  # fmt: skip


def sample(cell: Cell, repetition: int, outage_ms: float, **more: float) -> Sample:
    made = record(outage_ms, **more)  # type: ignore[arg-type]
    return Sample(cell=cell.key, repetition=repetition, move=0, record=made)


def failed(cell: Cell, repetition: int, error: str) -> Sample:
    return Sample(cell=cell.key, repetition=repetition, move=0, error=error)


def experiment(cells: Sequence[Cell] = (OURS, SCRIPT)) -> Experiment:
    """In the paper's place of Figure 4 of `fast`, so that its numbers stand beside ours."""
    from whimbrel.experiments.model import Promise

    figure = Figure(
        key="figure-4",
        of="Figure 4",
        title="a figure",
        cells=tuple(cells),
        quantities=(STAGED_DUMP, STAGED_COPY, OUTAGE_TCP, LOST),
        drawing=Drawing(stacks=(Stack("final iteration", ("final.dump", "final.copy")),), bars=("outage",)),
        notes=("a note on this figure",),
        promises=(Promise("no slower than the script", "outage", no_slower),),
    )
    return Experiment(
        name="made",
        paper="fast",
        summary="made for tests",
        figures=(figure,),
        link=Link(),
        notes=("a note on all figures",),
        baseline=lambda cell: (cell.strategy, By.SCRIPT) if cell.by is By.WHIMBREL else None,
        baseline_label="script",
    )
