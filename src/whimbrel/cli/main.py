"""The entry point: every error becomes one line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from whimbrel import __version__
from whimbrel.cli import experiments, host, lab, migrations, planning, processes, services, stores, ue, workloads
from whimbrel.model.errors import WhimbrelError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="whimbrel",
    help="Keeps a mobile user's stateful services next to the user: moves running containers between nodes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the decorated help would take twice as long to start
)
for part in (host, lab, processes, services, migrations, planning, stores, workloads, experiments, ue):
    part.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"whimbrel {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE)


def run(argv: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code: 0, 1 failed, 2 usage, 130 interrupted."""
    try:
        code = app(args=list(argv), prog_name="whimbrel", standalone_mode=False)
        sys.stdout.flush()
    except WhimbrelError as error:
        return _complain(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader had enough (`| head`): keep the interpreter from writing to it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        return _complain(f"{error.format_message().rstrip('.')}{hint}", USAGE)
    except Exception as error:
        if os.environ.get("WHIMBREL_DEBUG"):
            raise
        return _complain(
            f"internal error: {type(error).__name__}: {error} (WHIMBREL_DEBUG=1 shows where; please report it)",
            FAILED,
        )
    return code if isinstance(code, int) else OK


def _complain(text: str, code: int) -> int:
    print(f"whimbrel: {' '.join(text.split())}", file=sys.stderr)
    return code


def main() -> None:
    sys.exit(run(sys.argv[1:]))
