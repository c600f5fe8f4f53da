"""A figure as a table: on a terminal, in a pipe, and in the report's Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from whimbrel.bench import table
from whimbrel.experiments.model import By, Experiment, Figure, Row, Verdict
from whimbrel.experiments.paper import Paper
from whimbrel.model.units import format_bytes

FORMATS: dict[str, Callable[[float], str]] = {
    "ms": table.ms,
    "bytes": format_bytes,
    "%": lambda value: f"{value:.2f} %",
    "pages": lambda value: f"{value:,.0f}",
    "/s": lambda value: f"{value:,.0f}/s",
    "": lambda value: f"{value:g}",
}
NOTHING = "-"


@dataclass(frozen=True)
class Section:
    """A figure with what was measured of it."""

    figure: Figure
    rows: list[Row]
    verdicts: list[Verdict]


def value(amount: float | None, unit: str) -> str:
    return NOTHING if amount is None else FORMATS[unit](amount)


def with_interval(mean: float | None, half: float | None, unit: str) -> str:
    """``43 ms ± 2.1 ms``; without an interval the mean alone."""
    return value(mean, unit) + ("" if mean is None or half is None else f" ± {value(half, unit)}")


def times(ratio: float | None) -> str:
    """``1/12`` reads easier than 0.083."""
    if ratio is None:
        return NOTHING
    return f"1/{1 / ratio:.1f}" if 0 < ratio < 0.5 else f"{ratio:.2f}"


def headings(experiment: Experiment, rows: Sequence[Row]) -> tuple[str, ...]:
    base = ("service", "strategy", "what", "ours ± 95 % CI", "median", "sd", "n")
    against = (f"{experiment.baseline_label} ± 95 % CI", "ours / it") if _has_baseline(rows) else ()
    theirs = ("paper ± 95 % CI", "ours / paper") if _has_paper(rows) else ()
    return (*base, *against, *theirs)


def cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """One line, in the order of `headings`."""
    counted = str(row.n) + (f" (+{row.failed} failed)" if row.failed else "")
    line = [row.workload, row.strategy, row.label, with_interval(row.ours, row.ci95, row.unit)]
    line += [value(row.median if row.sd is not None else None, row.unit), value(row.sd, row.unit), counted]
    if _has_baseline(rows):
        line += [with_interval(row.baseline, row.baseline_ci95, row.unit), times(row.baseline_ratio)]
    if _has_paper(rows):
        line += [with_interval(row.paper, row.paper_ci95, row.unit), times(row.ratio)]
    return tuple(line)


def shown(rows: Sequence[Row]) -> list[Row]:
    """The script's rows stand beside ours as the baseline, not as lines of their own."""
    return [row for row in rows if row.by == By.WHIMBREL]


def _has_baseline(rows: Sequence[Row]) -> bool:
    return any(row.baseline is not None for row in rows)


def _has_paper(rows: Sequence[Row]) -> bool:
    return any(row.paper is not None for row in rows)


def remarks(rows: Sequence[Row]) -> list[str]:
    """What was not measured, and why."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            name = f"{row.workload} {row.strategy}" + (" by the script" if row.by == By.SCRIPT else "")
            reasons.setdefault(row.note, []).append(name)
    return [f"Not measured: {', '.join(dict.fromkeys(names))}: {note}." for note, names in reasons.items()]


def verdict(found: Verdict) -> str:
    if not found.judged:
        return f"Wanted: {found.promise}: nothing measured to judge by."
    said = []
    if found.broken:
        failed = f" (migrations failed: {', '.join(found.failed)})" if found.failed else ""
        said.append(f"NOT held by {', '.join(found.broken)}{failed}")
    if found.unproved:
        said.append(f"unproved, with fewer than {found.least_n} values, for {', '.join(found.unproved)}")
    return f"Wanted: {found.promise}: {'; '.join(said) or 'held'} ({found.held} of {found.judged})."


def show(console: Console, experiment: Experiment, section: Section) -> None:
    figure, rows = section.figure, section.rows
    lines = shown(rows)
    console.print(f"\n{figure.title}", highlight=False, markup=False, style="bold", soft_wrap=True)
    styles = ["yellow" if row.note else "" for row in lines]
    table.show(console, headings(experiment, lines), [cells(row, lines) for row in lines], styles)
    for line in (*remarks(rows), *map(verdict, section.verdicts), *figure.notes):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def show_notes(console: Console, experiment: Experiment) -> None:
    for note in experiment.notes:
        console.print(f"* {note}", highlight=False, markup=False, soft_wrap=True)


def markdown(experiment: Experiment, paper: Paper, machine: str, sections: Sequence[Section]) -> str:
    """The whole report, with the pictures beside it."""
    setting = f" ({paper.setting})" if paper.setting else ""
    parts = [f"# {experiment.name}: {experiment.summary}", f"Paper: *{paper.title}*{setting}.", f"Ours: {machine}."]
    for section in sections:
        figure, rows = section.figure, shown(section.rows)
        parts += [f"## {figure.title}"] + ([f"![{figure.title}]({figure.key}.png)"] if figure.drawing else [])
        parts.append(table.markdown(headings(experiment, rows), [cells(row, rows) for row in rows]))
        lines = (*remarks(section.rows), *map(verdict, section.verdicts), *figure.notes)
        parts.append("\n".join(f"- {line}" for line in lines))
    if experiment.notes:
        parts += ["## How ours is made", "\n".join(f"- {note}" for note in experiment.notes)]
    return "\n\n".join(parts) + "\n"
