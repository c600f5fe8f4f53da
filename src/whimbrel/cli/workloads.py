"""`workload ls | build | client`: the example services, their images, and the clients that verify them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whimbrel.cli.common import JsonOption, note, print_fields, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from whimbrel.bench.probe import Probe
    from whimbrel.client.report import Report
    from whimbrel.workloads.recipe import Recipe

HERE = "here"
workloads = typer.Typer(help="Example services with their images and clients.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="A workload (`whimbrel workload ls`).")]


def register(app: typer.Typer) -> None:
    app.add_typer(workloads, name="workload")


@workloads.command("ls")
def list_workloads(json: JsonOption = False) -> None:
    """The workloads there are."""
    from whimbrel.workloads import catalogue

    recipes = [catalogue.find(name) for name in catalogue.names()]
    if json:
        print_json([_view(recipe) for recipe in recipes])
        return
    rows = [(recipe.name, ", ".join(recipe.ports), ", ".join(recipe.papers), recipe.summary) for recipe in recipes]
    print_table(("workload", "ports", "paper", "what it is"), rows)


@workloads.command("build")
def build(name: Name, json: JsonOption = False) -> None:
    """Build a workload's image, unless the cache has it, and print its reference for `service run --image`."""
    from whimbrel.workloads import catalogue

    image = catalogue.build_workload(name, progress=note)
    if json:
        print_json({"workload": name, "image": image.reference, "client_dir": str(image.client_dir)})
    else:
        print(image.reference)


@workloads.command("client")
def client(
    name: Name,
    address: Annotated[str, typer.Option("--address", metavar="HOST[:PORT]", help="Where the service is.")],
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="N", min=0.1, help="How long to watch; Ctrl-C ends it earlier.")
    ] = 10.0,
    quiet: Annotated[
        float, typer.Option("--quiet", metavar="N", min=0.1, help="Seconds before, in which nothing should move.")
    ] = 2.0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What the service was told by --env (repeat)."),
    ] = None,
    place: Annotated[
        str,
        typer.Option(
            "--from", metavar="NODE", help="The lab's node to be at, or `here`; default: the lab's first user, if any."
        ),
    ] = "",
    json: JsonOption = False,
) -> int:
    """Talk to a workload and verify it, while you migrate it. Exit code 1 when something was lost, reset or damaged."""
    from whimbrel.bench.probe import Probe
    from whimbrel.model.errors import BadInput
    from whimbrel.workloads import builder, catalogue

    recipe = catalogue.find(name)
    host, _, port = address.partition(":")
    if not host or (port and not port.isdigit()):
        raise BadInput(f"--address {address!r} is not valid: write HOST or HOST:PORT")
    for entry in settings or ():
        if "=" not in entry[1:]:
            raise BadInput(f"--set {entry!r} is not valid: write KEY=VALUE")
    told = dict(entry.split("=", 1) for entry in settings or ())
    data = builder.CACHE / f"{recipe.name}.client"
    probe = Probe(
        recipe, host, port=int(port or 0), settings=told, data=data if data.is_dir() else None, prefix=_prefix(place)
    )
    with probe:
        report = _watch(probe, quiet, seconds)
    if json:
        print_json(report)
    else:
        _print_report(report)
    return 0 if report.state_ok and not report.lost and not report.resets else 1


def _watch(probe: Probe, quiet_s: float, seconds: float) -> Report:
    import time

    note(f"the quiet phase: {quiet_s:g} s")
    probe.quiet()
    time.sleep(quiet_s)
    probe.begin()
    note(f"quiet phase over, watching for {seconds:g} s: migrate now")
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        note("ending early")
    return probe.end()


def _prefix(place: str) -> Sequence[str]:
    """The command that starts a program where the user is."""
    from whimbrel.bench.trial import inside
    from whimbrel.lab import lab_status
    from whimbrel.model.errors import BadInput

    if place == HERE:
        return ()
    nodes = {node.name: node for node in lab_status().nodes}
    users = [node.name for node in nodes.values() if node.role == "user"]
    if place and place not in nodes:
        known = ", ".join(nodes) or "no lab is up"
        raise BadInput(f"--from {place!r} is no node of the lab ({known})")
    chosen = place or (users[0] if users else "")
    return inside(nodes[chosen].namespace) if chosen else ()


def _print_report(report: Report) -> None:
    from whimbrel.bench.table import ms

    print_fields(
        [
            ("workload", report.workload),
            ("requests", str(report.requests)),
            ("answered", str(report.answered)),
            ("lost", str(report.lost)),
            ("resets", str(report.resets)),
            ("stalls", str(report.stalls)),
            ("outage TCP", ms(report.outage_tcp_ms)),
            ("outage UDP", "" if report.outage_udp_ms is None else ms(report.outage_udp_ms)),
            ("quiet median", ms(report.quiet_median_ms)),
            ("state", "ok" if report.state_ok else "DAMAGED"),
        ]
    )
    for name, value in report.detail.items():
        if isinstance(value, dict) and not name.startswith("quiet_"):
            said = ", ".join(f"{key} {_short(entry)}" for key, entry in value.items())
            print(f"{name}: {said}")


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def built(image: str) -> tuple[str, Recipe | None]:
    """``workload:NAME`` becomes its image's reference, and the recipe says its ports; other references stay."""
    from whimbrel.workloads import catalogue

    if not image.startswith(catalogue.PREFIX):
        return image, None
    name = image.removeprefix(catalogue.PREFIX)
    return catalogue.build_workload(name, progress=note).reference, catalogue.find(name)


def _view(recipe: Recipe) -> dict[str, object]:
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "papers": recipe.papers,
        "ports": recipe.ports,
        "env": recipe.env,
        "folder": str(Path(recipe.folder)),
    }
