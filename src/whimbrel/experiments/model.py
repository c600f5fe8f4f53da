"""What an experiment is made of, and what comes out of one. Frozen values, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import msgspec

from whimbrel.client.report import Report
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.workloads.builder import Image


class By(StrEnum):
    """Who moves the container."""

    WHIMBREL = "whimbrel"
    SCRIPT = "script"
    """The same steps as a shell script, with rsync, CRIU and runc: see `scripts/`."""


@dataclass(frozen=True)
class Cell:
    """One workload moved in one way. `moves`: migrations of each service, one after another, each of them a sample;
    `work_s`: how long its client works before each. `settings`: what the workload is told otherwise than its recipe
    says. `system`: it runs inside a system container of that kind (`systems`), not in a container of its own.
    `root_bytes`: its root file system is filled up to that size (`roots`), as papers' containers hold a system."""

    workload: str
    strategy: str
    by: By = By.WHIMBREL
    system: str = ""
    moves: int = 1
    work_s: float = 1.5
    settings: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    root_bytes: int = 0

    @property
    def name(self) -> str:
        """What the cell is called in samples, rows and tables."""
        return self.label or self.workload

    @property
    def key(self) -> str:
        return f"{self.name}/{self.strategy}/{self.by}"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One migration of a cell. `report` is what the client saw; `error`: why there is no whole record. Where a cell is
    no migration (see `Experiment.stage`) there are facts alone."""

    cell: str
    repetition: int
    move: int
    record: MigrationRecord | None = None
    report: Report | None = None
    facts: dict[str, float] = {}
    error: str = ""

    @property
    def good(self) -> bool:
        if self.record is None:
            return bool(self.facts) and not self.error
        return self.record.outcome is Outcome.DONE


@dataclass(frozen=True)
class Quantity:
    """`of` reads the value out of a good sample, None when there is none; `key` names it in the paper's data too.
    `summed`: of all samples the sum counts, not the mean."""

    key: str
    label: str
    unit: str
    of: Callable[[Sample], float | None]
    summed: bool = False


@dataclass(frozen=True)
class Stack:
    """A bar of parts on top of each other, for example the phases of one iteration."""

    label: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """How a figure is drawn. `stacks`: bars of parts for each cell of ours; `bars`: quantities as bars of ours, the
    baseline's and the paper's, beside each other. `log`: for values that lie far apart; `limit`: a line that bars
    should stay below. `own`: draws it instead, from what lies in the experiment's folder, into a file."""

    stacks: tuple[Stack, ...] = ()
    bars: tuple[str, ...] = ()
    log: bool = False
    limit: float | None = None
    own: Callable[[Path, Path], None] | None = None


@dataclass(frozen=True)
class Promise:
    """What must hold of every row of a quantity: `holds` says whether it does, None when the row cannot tell. With
    `beside`, `holds_beside` says so of the row and of the same service's under that strategy.

    Below `least_n` values (of the row, of the one beside it, and of the baseline where `baseline` says that it is held
    against that) nothing is proven; but with `counts`, of what must not happen at all, once is enough to break it. A
    migration that failed breaks it, however many did not."""

    text: str
    quantity: str
    holds: Callable[[Row], bool | None]
    cells: Callable[[Row], bool] = lambda _: True
    beside: str = ""
    holds_beside: Callable[[Row, Row], bool | None] | None = None
    least_n: int = 0
    baseline: bool = False
    counts: bool = False


@dataclass(frozen=True)
class Figure:
    """`key` is the file's name (``figure-4``), `title` stands above table and picture, `of` is the paper's own name
    for it. `notes` say in plain words where ours is made otherwise than theirs. `drawing` None: a table is enough."""

    key: str
    of: str
    title: str
    cells: tuple[Cell, ...]
    quantities: tuple[Quantity, ...]
    drawing: Drawing | None
    notes: tuple[str, ...] = ()
    promises: tuple[Promise, ...] = ()


@dataclass(frozen=True)
class Link:
    """Every link of the lab, both ways; 0 means: as fast as it goes."""

    rate_bps: float = 0.0


Facts = dict[str, float]
Staged = Callable[[Cell, Image], Iterator[Facts]]
"""Measures a cell once: the facts of each sample."""


class Stage(Protocol):
    def __call__(
        self, place: Any, tell: Callable[[str], None], out: Path, /, *, quick: bool
    ) -> AbstractContextManager[Staged]: ...


@dataclass(frozen=True)
class Experiment:
    """`notes` hold for all figures. `baseline`: the strategy and mover that a cell is held against in the same run
    (None: nothing); `baseline_label` says what that is. `quick_workloads` (none: all) and `quick_cells`: what is
    left of it when it is to be quick. `runs`: repetitions of every cell. `image_size`: the size of the images is
    wanted, as the fact ``image_bytes`` of each sample. `stage`: cells are not migrations from here to there but
    something else, which it measures in a lab of its own."""

    name: str
    paper: str
    summary: str
    figures: tuple[Figure, ...]
    link: Link
    notes: tuple[str, ...] = ()
    runs: int = 10
    quick_runs: int = 2
    quick_workloads: tuple[str, ...] = ()
    quick_cells: Callable[[Cell], bool] = lambda _: True
    image_size: bool = False
    baseline: Callable[[Cell], tuple[str, By] | None] = lambda _: None
    baseline_label: str = ""
    stage: Stage | None = None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Each once, whatever figures show it."""
        return tuple({cell.key: cell for figure in self.figures for cell in figure.cells}.values())


class PaperValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number of a paper. `quote` is the piece of its text that holds `mean`, `sd` and `ci95`; `where` names section,
    table or figure; `note` says what is odd about it."""

    figure: str
    workload: str
    strategy: str
    quantity: str
    unit: str
    mean: float
    where: str
    quote: str
    sd: float | None = None
    ci95: float | None = None
    note: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a promise held: `held` of the `judged` rows; `broken` names those that broke it, `unproved` those with
    fewer than `least_n` values. `failed`: of the broken ones, those where a migration failed."""

    promise: str
    judged: int
    held: int
    broken: tuple[str, ...] = ()
    unproved: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    least_n: int = 1


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a figure: ours, the baseline's of the same run, and the paper's. `ours` is the mean (of what is
    counted: the sum, without the others), `sd` the standard deviation of the `n` values, `ci95` half the width of the
    95 % confidence interval of the mean. `ratio` = ours / paper, `baseline_ratio` = ours / baseline. None: not
    measured, or not in the paper; `note` says why nothing is."""

    figure: str
    workload: str
    strategy: str
    by: str
    quantity: str
    label: str
    unit: str
    ours: float | None = None
    sd: float | None = None
    ci95: float | None = None
    median: float | None = None
    n: int = 0
    failed: int = 0
    baseline: float | None = None
    baseline_sd: float | None = None
    baseline_ci95: float | None = None
    baseline_median: float | None = None
    baseline_n: int = 0
    baseline_ratio: float | None = None
    paper: float | None = None
    paper_sd: float | None = None
    paper_ci95: float | None = None
    paper_where: str = ""
    ratio: float | None = None
    note: str = ""
