"""Migrations as a table: for a terminal, for a log, and for the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.model.units import format_bytes

HEADINGS = (
    "migration",
    "strategy",
    "total",
    "freeze",
    "outage UDP",
    "outage TCP",
    "lost",
    "resets",
    "sent",
    "state",
)
LEFT = frozenset({"migration", "strategy", "state", "service", "phase", "what"})


def ms(value: float | None) -> str:
    """``63.4`` -> ``63 ms``, ``1234.5`` -> ``1.23 s``, below ten one decimal; ``-`` for not measured."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.1f} ms" if value < 9.95 else f"{value:.0f} ms"


def state_text(record: MigrationRecord) -> str:
    """What became of the service: the check's result, or why there is none."""
    if record.outcome is not Outcome.DONE:
        return f"{record.outcome}: {record.error}" if record.error else str(record.outcome)
    return {True: "ok", False: "DAMAGED", None: "-"}[record.state_ok]


def cells(record: MigrationRecord) -> tuple[str, ...]:
    """One row, in the order of `HEADINGS`."""
    return (
        f"{record.source} → {record.destination}",
        record.strategy,
        ms(record.total_ms),
        ms(record.freeze_ms),
        ms(record.outage_udp_ms),
        ms(record.outage_tcp_ms),
        "-" if record.lost is None else str(record.lost),
        "-" if record.resets is None else str(record.resets),
        format_bytes(record.bytes_sent),
        state_text(record),
    )


def is_good(record: MigrationRecord) -> bool:
    """Done, nothing lost, nothing reset, state whole (what was not measured does not count against it)."""
    return record.outcome is Outcome.DONE and not record.lost and not record.resets and record.state_ok is not False


def rich_table(headings: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = ()) -> Table:
    """A table for a terminal; `styles`: one per row, for example red for a failure."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        left = heading in LEFT
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "state")
    for index, row in enumerate(rows):
        table.add_row(*row, style=styles[index] if index < len(styles) else None)
    return table


def plain(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns, two spaces apart: for logs and pipes."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if heading in LEFT else cell.rjust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A GitHub table."""

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    rule = "|" + "|".join("---" if heading in LEFT else "---:" for heading in headings) + "|"
    return "\n".join([line(headings), rule, *(line(row) for row in rows)])


def show(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> None:
    """Print as a table on a terminal, as plain aligned text elsewhere."""
    if console.is_terminal:
        console.print(rich_table(headings, rows, styles))
    else:
        console.file.write(plain(headings, rows) + "\n")


def show_migrations(console: Console, records: Sequence[MigrationRecord]) -> None:
    styles = ["" if is_good(record) else "bold red" for record in records]
    show(console, HEADINGS, [cells(record) for record in records], styles)


def migrations_markdown(records: Sequence[MigrationRecord]) -> str:
    return markdown(HEADINGS, [cells(record) for record in records])
