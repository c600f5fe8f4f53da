"""What the documents name is there: tests, commands, options and files."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from whimbrel.cli.main import app
from whimbrel.experiments.catalogue import experiments

REPO = Path(__file__).parents[1]
DOCUMENTS = sorted([*REPO.glob("*.md"), *REPO.glob("docs/**/*.md")])
NAMED_TESTS = sorted(set(re.findall(r"`([\w/]+\.py::[^`]+)`", (REPO / "SPECIFICATION.md").read_text())))
BENCHMARK_NAMES = ("downtime", "pages", "faults", "files", "codecs", "link", "plan", "api", "dashboard", "recovery")
BENCHMARKS = {
    "demo",
    *(f"bench {name}" for name in BENCHMARK_NAMES),
    *(f"experiment run {name}" for name in experiments()),
}


@cache
def functions_of(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@pytest.mark.parametrize("named", NAMED_TESTS)
def test_a_test_that_the_specification_names_exists(named: str) -> None:
    file, _, name = named.partition("::")
    path = REPO / "tests" / file
    assert path.is_file(), f"there is no {path}"
    assert name.partition("[")[0] in functions_of(path), f"{file} has no test {name}"


def test_every_promise_names_its_proof() -> None:
    rows = [
        line.strip("| ").split("|")
        for line in (REPO / "SPECIFICATION.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| Promise", "|---"))
    ]
    assert len(rows) > 40
    for promise, *proof in rows:
        named = re.findall(r"`([^`]+)`", "|".join(proof))
        assert named, f"nothing proves: {promise}"
        for each in named:
            assert each in NAMED_TESTS or each.removeprefix("whimbrel ") in BENCHMARKS, each


def whimbrel_lines() -> list[str]:
    """What the README tells to type: lines of its blocks, and inline pieces that begin with the command."""
    text = (REPO / "README.md").read_text()
    blocks = [line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = [*blocks, *re.findall(r"`([^`\n]+)`", prose)]
    return [re.split(r"\s{2,}", line)[0] for line in lines if line.startswith("whimbrel ")]


@pytest.mark.parametrize("line", whimbrel_lines())
def test_a_command_of_the_readme_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if getattr(command, "invoke_without_command", False) and words[0].startswith("--"):
            break
        assert words[0] in command.commands, f"`{line}`: there is no {words[0]}"
        command = command.commands[words.pop(0)]
    whole = not hasattr(command, "commands") or getattr(command, "invoke_without_command", False)
    assert whole, f"`{line}` names no whole command"
    known = {name for parameter in command.params for name in parameter.opts}
    for word in words:
        if word.startswith("--"):
            assert word in known, f"`{line}`: there is no {word}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document.name}: {target}"
