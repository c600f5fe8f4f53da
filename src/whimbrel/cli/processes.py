"""`controller` and `agent`: the two long-running processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(controller)
    app.command()(agent)


def controller(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file that names the nodes.")] = Path(
        "/etc/whimbrel/controller.toml"
    ),
) -> int:
    """Run the region's controller until SIGTERM."""
    from whimbrel.controller.main import run

    return run(config)


def agent(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="TOML file with this node's settings.")
    ] = Path("/etc/whimbrel/agent.toml"),
) -> int:
    """Run the agent of this node until SIGTERM. Needs root."""
    # It computes nothing by it, and must have one thread at its beginning (`migrate.nursery`).
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from whimbrel.agent.main import run

    return run(config)
