"""From samples to the lines of a figure. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from whimbrel.experiments.model import By, Cell, Experiment, Figure, PaperValue, Promise, Quantity, Row, Sample, Verdict
from whimbrel.experiments.paper import Paper
from whimbrel.experiments.statistics import Estimate, estimate, total

# What papers print, in the units that rows have.
UNITS = {
    ("s", "ms"): 1e3,
    ("KB", "bytes"): 1e3,
    ("MB", "bytes"): 1e6,
    ("GB", "bytes"): 1e9,
}
SampleOf = Callable[[str], Sequence[Sample]]


def rows_of(
    experiment: Experiment, figure: Figure, samples: SampleOf, paper: Paper, skipped: Mapping[str, str]
) -> list[Row]:
    """One row for each cell and quantity that either we or the paper have. `samples` gives those of a cell's key;
    `skipped`: why a cell was not measured."""
    rows = []
    for cell in figure.cells:
        of_cell = samples(cell.key)
        other = experiment.baseline(cell)
        against = samples(f"{cell.name}/{other[0]}/{other[1]}") if other else ()
        note = skipped.get(cell.key, "") or _failure(of_cell)
        found = [_row(figure, cell, quantity, of_cell, against, paper, note) for quantity in figure.quantities]
        rows += [row for row in found if row.ours is not None or row.paper is not None] or found[:1]
    return rows


def verdicts(figure: Figure, rows: Sequence[Row]) -> list[Verdict]:
    return [_verdict(promise, [row for row in rows if row.by == By.WHIMBREL]) for promise in figure.promises]


def _verdict(promise: Promise, rows: Sequence[Row]) -> Verdict:
    concerned = [row for row in rows if promise.cells(row)]
    failed = tuple(dict.fromkeys(_name(row) for row in concerned if row.failed))
    held: list[str] = []
    broken, unproved = list(failed), list[str]()
    for row in concerned:
        if row.quantity != promise.quantity or _name(row) in failed:
            continue
        other = _beside(promise, row, rows)
        holds = _holds(promise, row, other)
        if holds is None:
            continue
        proven = _least(promise, row, other) >= promise.least_n or (promise.counts and not holds)
        (unproved if not proven else held if holds else broken).append(_name(row))
    return Verdict(
        promise=promise.text,
        judged=len(held) + len(broken) + len(unproved),
        held=len(held),
        broken=tuple(broken),
        unproved=tuple(unproved),
        failed=failed,
        least_n=promise.least_n,
    )


def any_broken(found: Iterable[Verdict]) -> bool:
    return any(verdict.broken for verdict in found)


def _name(row: Row) -> str:
    return f"{row.workload} {row.strategy}"


def _beside(promise: Promise, row: Row, rows: Sequence[Row]) -> Row | None:
    wanted = (row.workload, promise.beside, row.quantity)
    return next((one for one in rows if (one.workload, one.strategy, one.quantity) == wanted), None)


def _holds(promise: Promise, row: Row, other: Row | None) -> bool | None:
    if promise.holds_beside is None:
        return promise.holds(row)
    return None if other is None else promise.holds_beside(row, other)


def _least(promise: Promise, row: Row, other: Row | None) -> int:
    """Of how many values the fewest are that the verdict rests on."""
    counts = [row.n]
    if promise.holds_beside is not None and other is not None:
        counts.append(other.n)
    if promise.baseline:
        counts.append(row.baseline_n)
    return min(counts)


MOST_OF_BASELINE = 1.1


def no_slower(row: Row) -> bool | None:
    """Is ours no slower than the baseline? Both must hold: the difference of the means is not above zero by more than
    half its 95 % interval (from both intervals, added as variances are), and our median is at most `MOST_OF_BASELINE`
    times the baseline's: few values that scatter have a wide interval, in which nearly everything lies."""
    if row.ours is None or row.baseline is None or row.median is None or row.baseline_median is None:
        return None
    in_interval = row.ours - row.baseline <= math.hypot(row.ci95 or 0.0, row.baseline_ci95 or 0.0)
    return in_interval and row.median <= MOST_OF_BASELINE * row.baseline_median


def shorter(row: Row, other: Row) -> bool | None:
    """By the medians."""
    return None if row.median is None or other.median is None else row.median < other.median


def _row(
    figure: Figure,
    cell: Cell,
    quantity: Quantity,
    samples: Sequence[Sample],
    against: Sequence[Sample],
    paper: Paper,
    note: str,
) -> Row:
    row = Row(
        figure=figure.key,
        workload=cell.name,
        strategy=cell.strategy,
        by=cell.by,
        quantity=quantity.key,
        label=quantity.label,
        unit=quantity.unit,
        failed=sum(not sample.good for sample in samples),
        note=note,
    )
    ours, theirs = _estimate(quantity, samples), _estimate(quantity, against)
    if ours is not None:
        row = msgspec.structs.replace(row, ours=ours.mean, sd=ours.sd, ci95=ours.ci95, median=ours.median, n=ours.n)
    if theirs is not None:
        row = msgspec.structs.replace(
            row,
            baseline=theirs.mean,
            baseline_sd=theirs.sd,
            baseline_ci95=theirs.ci95,
            baseline_median=theirs.median,
            baseline_n=theirs.n,
            baseline_ratio=_ratio(row.ours, theirs.mean),
        )
    value = paper.find(figure.key, cell.name, cell.strategy, quantity.key) if cell.by is By.WHIMBREL else None
    if value is not None:
        factor = factor_of(value, quantity)
        row = msgspec.structs.replace(
            row,
            paper=value.mean * factor,
            paper_sd=None if value.sd is None else value.sd * factor,
            paper_ci95=None if value.ci95 is None else value.ci95 * factor,
            paper_where=value.where,
            ratio=_ratio(row.ours, value.mean * factor),
        )
    return row


def factor_of(value: PaperValue, quantity: Quantity) -> float:
    """Raises KeyError when the paper's unit is not one of the quantity's."""
    return 1.0 if value.unit == quantity.unit else UNITS[value.unit, quantity.unit]


def _estimate(quantity: Quantity, samples: Sequence[Sample]) -> Estimate | None:
    values = [value for sample in samples if sample.good and (value := quantity.of(sample)) is not None]
    return total(values) if quantity.summed else estimate(values)


def _ratio(ours: float | None, theirs: float) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _failure(samples: Sequence[Sample]) -> str:
    """What the first of the samples that failed said."""
    for sample in samples:
        if not sample.good:
            record = sample.record
            return sample.error or (f"{record.outcome}: {record.error}" if record else "failed")
    return ""
