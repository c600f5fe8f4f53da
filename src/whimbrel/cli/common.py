"""What several commands share: options, the controller's address, output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whimbrel.plan.strategies import names

if TYPE_CHECKING:
    from rich.console import Console

    from whimbrel.controller.client import ControllerClient


def _strategy_known(name: str) -> str:
    if name not in names():
        raise typer.BadParameter(f"there is no strategy {name!r}: choose from {', '.join(names())}")
    return name


StrategyOption = Annotated[
    str,
    typer.Option("--strategy", metavar="S", callback=_strategy_known, help=f"How: {', '.join(names())}."),
]
ControllerOption = Annotated[
    str | None,
    typer.Option(
        "--controller",
        envvar="WHIMBREL_CONTROLLER",
        metavar="ADDRESS",
        help="The controller: unix:PATH or tcp:HOST:PORT. Default: a running lab's, else this host's.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def address_of(address: str | None) -> str:
    """The address, or the lab's controller if there is one, else this host's."""
    from whimbrel.controller.listen import DEFAULT_LISTEN
    from whimbrel.lab.config import DEFAULT_LAB_DIR, controller_socket

    if address:
        return address
    lab: Path = controller_socket(DEFAULT_LAB_DIR)
    return f"unix:{lab}" if lab.exists() else DEFAULT_LISTEN


def connect(address: str | None) -> ControllerClient:
    """A client for `address_of` that."""
    from whimbrel.controller.client import ControllerClient

    return ControllerClient(address_of(address))


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Structs become objects; times keep full precision."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    sys.stdout.write(text + "\n")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> None:
    """A table on a terminal, aligned columns elsewhere. Nothing is cut in a pipe."""
    out = console()
    if out.is_terminal:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for index, row in enumerate(rows):
            table.add_row(*row, style=styles[index] if index < len(styles) else None)
        out.print(table)
        return
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """``name  value`` lines, names aligned; empty values are left out."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        if value:
            print(f"{name.ljust(width)}  {value}")


def listed(text: str) -> tuple[str, ...]:
    """What an option like ``--workload NAME,…`` names."""
    return tuple(name.strip() for name in text.split(","))


def note(text: str) -> None:
    """One line that is not the answer: to standard error."""
    print(f"whimbrel: {text}", file=sys.stderr)
