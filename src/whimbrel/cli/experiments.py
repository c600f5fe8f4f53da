"""`experiment`: the papers' tables and figures, measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whimbrel.cli.common import JsonOption, console, listed, print_json, print_table

experiments = typer.Typer(help="The papers' tables and figures, ours beside theirs.")


def register(app: typer.Typer) -> None:
    app.add_typer(experiments, name="experiment")


@experiments.command("ls")
def list_experiments(json: JsonOption = False) -> None:
    """What can be measured."""
    from whimbrel.experiments.catalogue import experiments as known

    found = [
        {
            "name": each.name,
            "paper": each.paper,
            "figures": [figure.of for figure in each.figures],
            "runs": each.runs,
            "summary": each.summary,
        }
        for each in known().values()
    ]
    if json:
        print_json(found)
        return
    rows = [(str(each["name"]), str(each["paper"]), ", ".join(each["figures"]), str(each["summary"])) for each in found]  # type: ignore[arg-type]
    print_table(("experiment", "paper", "figures", "what"), rows)


@experiments.command("run")
def run_experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `whimbrel experiment ls`.")],
    quick: Annotated[bool, typer.Option("--quick", help="Few runs of few services: a first look.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where all goes; default: ./out/NAME.", show_default=False),
    ] = None,
    runs: Annotated[
        int,
        typer.Option("--runs", metavar="N", min=0, help="How often each way is measured; 0: as the experiment says."),
    ] = 0,
    link: Annotated[
        str, typer.Option("--link", metavar="RATE", help="Rate of all links, like 1gbit, or max; default: the paper's.")
    ] = "",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Makes the random order of the runs.")] = 1,
    workload: Annotated[str, typer.Option("--workload", metavar="NAME,…", help="Only these services.")] = "",
    strategy: Annotated[str, typer.Option("--strategy", metavar="NAME,…", help="Only these strategies.")] = "",
) -> int:
    """Measure in a lab of its own and write tables, JSON and pictures; 1 when something that is wanted does not hold.
    The same command goes on with a broken run."""
    from whimbrel.experiments.catalogue import find
    from whimbrel.experiments.model import Link
    from whimbrel.experiments.runner import Options, run
    from whimbrel.model.units import parse_rate_bps

    experiment = find(name)
    folder = out or Path("out", name)
    rate = Link(rate_bps=0.0 if link == "max" else parse_rate_bps(link)) if link else None
    options = Options(
        out=folder,
        quick=quick,
        runs=runs,
        seed=seed,
        link=rate,
        workloads=frozenset(listed(workload) if workload else ()),
        strategies=frozenset(listed(strategy) if strategy else ()),
    )
    document = run(experiment, options, console())
    return int(any(promise["broken"] for promise in document["promises"]))
