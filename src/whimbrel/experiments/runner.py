"""An experiment from beginning to end: cells in random order, samples kept, then tables, JSON and pictures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from whimbrel.bench.report import machine
from whimbrel.bench.table import ms
from whimbrel.experiments import movers, paper, text
from whimbrel.experiments.facts import image_bytes
from whimbrel.experiments.model import Cell, Experiment, Figure, Link, Sample, Stage
from whimbrel.experiments.order import Turn, turns
from whimbrel.experiments.rows import rows_of, verdicts
from whimbrel.experiments.samples import Samples, load_or_begin, save
from whimbrel.experiments.site import Place, Site, site
from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.workloads import catalogue as workloads
from whimbrel.workloads.builder import Image, build

MOST_FAILURES = 4  # in a row: then something is wrong that more runs do not mend
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """`runs` 0 means as many as the experiment says, `link` None the rate that it says. `seed` makes the order. Only
    cells of these `workloads` and `strategies`; none named: of all."""

    out: Path
    quick: bool = False
    runs: int = 0
    seed: int = 1
    link: Link | None = None
    workloads: frozenset[str] = frozenset()
    strategies: frozenset[str] = frozenset()
    place: Place = field(default_factory=Place)


def run(experiment: Experiment, options: Options, console: Console) -> dict[str, Any]:
    """Measure what is not there yet, then write and print everything; returns the document of all rows.

    After Ctrl-C or an error what was measured until then is on disk, and the same command goes on from there.
    """
    if options.runs < 0:
        raise BadInput(f"--runs {options.runs} means nothing: give 1 or more")
    runs = options.runs or (experiment.quick_runs if options.quick else experiment.runs)
    cells = list(filter(_wanted(experiment, options), experiment.cells))
    why_not = movers.why_not if experiment.stage is None else _no_workload
    skipped = {cell.key: reason for cell in cells if (reason := why_not(cell))}
    kept = _open(experiment, options)
    todo = list(turns([cell for cell in cells if cell.key not in skipped], runs, kept.seed, kept.done()))
    if todo:
        with _telling(console, len(todo)) as (tell, advance):
            kept = _measure(experiment, options, kept, todo, tell, advance)
    if not kept.samples:
        reasons = "; ".join(sorted(set(skipped.values())))
        raise Refused(f"nothing of experiment {experiment.name} can be measured here: {reasons}")
    return _conclude(experiment, options, kept, skipped, console)


def _wanted(experiment: Experiment, options: Options) -> Callable[[Cell], bool]:
    """Raises BadInput for names that the experiment does not know."""
    few = experiment.quick_workloads if options.quick else ()
    workloads, strategies = options.workloads, options.strategies
    for what, named, known in (
        ("workload", workloads, {cell.workload for cell in experiment.cells}),
        ("strategy", strategies, {cell.strategy for cell in experiment.cells}),
    ):
        if named - known:
            strange, all_known = ", ".join(sorted(named - known)), ", ".join(sorted(known))
            raise BadInput(f"experiment {experiment.name} has no {what} {strange}: give some of {all_known}")

    def wanted(cell: Cell) -> bool:
        chosen = (not workloads or cell.workload in workloads) and (not strategies or cell.strategy in strategies)
        return chosen and (not few or cell.name in few) and (not options.quick or experiment.quick_cells(cell))

    return wanted


def _reduced(figure: Figure, wanted: Callable[[Cell], bool]) -> Figure:
    return replace(figure, cells=tuple(filter(wanted, figure.cells)))


def _open(experiment: Experiment, options: Options) -> Samples:
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {options.out} cannot be made: {error.strerror}") from error
    fresh = Samples(
        experiment=experiment.name,
        quick=options.quick,
        seed=options.seed,
        link_rate_bps=(options.link or experiment.link).rate_bps,
        machine=machine(),
    )
    return load_or_begin(options.out, fresh)


def _measure(
    experiment: Experiment, options: Options, kept: Samples, todo: list[Turn], tell: Tell, advance: Callable[[], None]
) -> Samples:
    images = {
        name: build(workloads.find(name), progress=tell) for name in sorted({turn.cell.workload for turn in todo})
    }
    if experiment.stage is not None:
        return _staged(experiment.stage, options, kept, todo, images, tell, advance)
    facts = {name: _facts(experiment, image) for name, image in images.items()}
    link = options.link or experiment.link
    failures = 0
    storage = any(movers.needs_storage(turn.cell) for turn in todo)
    with site(options.place, link, tell, storage=storage) as where:
        for turn in todo:
            series = _series(where, turn, images[turn.cell.workload], facts[turn.cell.workload])
            kept = kept.plus(series)
            save(options.out, kept)
            for sample in series:
                tell(sentence(sample))
            advance()
            failures = 0 if series[-1].good else failures + 1
            if failures >= MOST_FAILURES:
                raise WhimbrelError(f"{failures} runs failed one after another; the last: {series[-1].error}")
    return kept


def _staged(
    stage: Stage,
    options: Options,
    kept: Samples,
    todo: list[Turn],
    images: dict[str, Image],
    tell: Tell,
    advance: Callable[[], None],
) -> Samples:
    with stage(options.place, tell, options.out, quick=options.quick) as measure:
        for turn in todo:
            cell = turn.cell
            try:
                found = [(facts, "") for facts in measure(cell, images[cell.workload])]
            except WhimbrelError as error:
                found = [({}, str(error))]
            series = [
                Sample(cell=cell.key, repetition=turn.repetition, move=move, facts=facts, error=error)
                for move, (facts, error) in enumerate(found)
            ]
            kept = kept.plus(series)
            save(options.out, kept)
            tell(f"{cell.key}: {found[0][1] or f'{len(series)} samples'}")
            advance()
    return kept


def _no_workload(cell: Cell) -> str:
    return "" if cell.workload in workloads.names() else f"there is no workload {cell.workload!r} yet"


def _facts(experiment: Experiment, image: Image) -> dict[str, float]:
    return {"image_bytes": float(image_bytes(image))} if experiment.image_size else {}


def _series(where: Site, turn: Turn, image: Image, facts: dict[str, float]) -> list[Sample]:
    """The samples of one turn; a failure is one too."""
    cell = turn.cell
    samples: list[Sample] = []

    def sample(**what: Any) -> Sample:
        return Sample(cell=cell.key, repetition=turn.repetition, move=len(samples), facts=facts, **what)

    try:
        with contextlib.closing(movers.moves(where, cell, image, where.edges[turn.start])) as moved:
            for record, report in moved:
                samples.append(sample(record=record, report=report, error=record.error))
    except WhimbrelError as error:
        samples.append(sample(error=str(error)))
    return samples


def sentence(sample: Sample) -> str:
    record = sample.record
    if record is None or not sample.good:
        return f"{sample.cell}: failed: {sample.error}"
    return (
        f"{sample.cell}: outage {ms(record.outage_tcp_ms)}, freeze {ms(record.freeze_ms)}, total {ms(record.total_ms)}"
    )


def _conclude(
    experiment: Experiment, options: Options, kept: Samples, skipped: dict[str, str], console: Console
) -> dict[str, Any]:
    from whimbrel.experiments import picture  # here: matplotlib takes a second to import

    source = paper.load(experiment.paper)
    sections = []
    for figure in map(partial(_reduced, wanted=_wanted(experiment, options)), experiment.figures):
        rows = rows_of(experiment, figure, kept.of, source, skipped)
        section = text.Section(figure, rows, verdicts(figure, rows))
        sections.append(section)
        _write(options.out / f"{figure.key}.json", _document(experiment, figure.of, kept, [section]))
        if figure.drawing is not None and figure.drawing.own is not None:
            figure.drawing.own(options.out, options.out / f"{figure.key}.png")
        elif figure.drawing is not None:
            picture.draw(experiment, figure, figure.drawing, rows, options.out / f"{figure.key}.png")
        text.show(console, experiment, section)
    (options.out / "report.md").write_text(text.markdown(experiment, source, describe(kept.machine), sections))
    whole = _document(experiment, ", ".join(section.figure.of for section in sections), kept, sections)
    _write(options.out / f"{experiment.name}.json", whole)
    console.print()
    text.show_notes(console, experiment)
    console.print(f"written to {options.out}", highlight=False, markup=False, soft_wrap=True)
    return whole


def _document(experiment: Experiment, figure: str, kept: Samples, sections: Sequence[text.Section]) -> dict[str, Any]:
    """The form that DESIGN fixes."""
    return {
        "experiment": experiment.name,
        "paper": experiment.paper,
        "figure": figure,
        "machine": kept.machine,
        "parameters": {"quick": kept.quick, "seed": kept.seed, "link_rate_bps": kept.link_rate_bps},
        "rows": [msgspec.to_builtins(row) for section in sections for row in section.rows],
        "notes": [*experiment.notes, *(note for section in sections for note in section.figure.notes)],
        "promises": [msgspec.to_builtins(verdict) for section in sections for verdict in section.verdicts],
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def describe(facts: dict[str, Any]) -> str:
    memory_gb = facts.get("memory_bytes", 0) / 1e9
    return f"{facts.get('cpus')} cores ({facts.get('cpu')}), {memory_gb:.0f} GB, Linux {facts.get('kernel')}"


@contextmanager
def _telling(console: Console, total: int) -> Iterator[tuple[Tell, Callable[[], None]]]:
    """A progress bar on a terminal, numbered lines elsewhere."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task("series", total=total)
            yield lambda line: bar.console.print(line, highlight=False, markup=False), lambda: bar.advance(task)
        return
    begin, done = time.monotonic(), [0]

    def advance() -> None:
        done[0] += 1

    def tell(line: str) -> None:
        seconds = time.monotonic() - begin
        console.print(f"{seconds:6.1f} s  {done[0]}/{total}  {line}", highlight=False, markup=False, soft_wrap=True)

    yield tell, advance
