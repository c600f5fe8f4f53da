"""docs/cli.md names every command and every option."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from whimbrel.cli.main import app

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if getattr(command, "invoke_without_command", False):
            yield f"{prefix} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


ALL = dict(commands(typer.main.get_command(app), "whimbrel"))


def test_there_are_the_commands_of_the_design() -> None:
    assert set(ALL) == {
        f"whimbrel {name}"
        for name in (
            "check", "lab up", "lab down", "lab status", "lab topologies",
            "lab show", "demo", "controller", "controller token", "agent", "dashboard", "node ls",
            "node inspect", "node benchmark",
            "service run", "service ls", "service inspect", "service logs", "service exec", "service probe",
            "service rm",
            "migrate",
            "migration ls", "migration show", "migration cancel", "migration resolve",
            "bench", "experiment ls", "experiment run",
            "workload ls", "workload build", "workload client", "service adopt", "service release",
            "volume ls", "volume rm", "image ls", "image push", "ue", "application add", "application ls",
            "application rm", "plan ls", "plan show", "plan users", "plan planner", "plan errors",
        )
    }  # fmt: skip


@pytest.mark.parametrize("path", ALL)
def test_every_command_and_option_is_documented(path: str) -> None:
    text = DOCS.read_text()
    heading = f"### `{path}"
    assert heading in text
    section = text.split(heading, 1)[1].split("\n### ", 1)[0]
    for parameter in ALL[path].params:
        for name in parameter.opts if parameter.param_type_name == "option" else ():
            if name != "--help":
                assert f"`{name}" in section or name == "--controller", f"{path} {name}"


SHOWING = [path for path in ALL if path.split()[-1] in ("ls", "show", "inspect", "status", "check")]


@pytest.mark.parametrize("path", SHOWING)
def test_what_shows_has_json(path: str) -> None:
    assert "--json" in [name for parameter in ALL[path].params for name in parameter.opts]
