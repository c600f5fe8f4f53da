"""`lab`, `demo` and `bench`: what needs no controller of its own, because it brings one up."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from whimbrel.cli.common import JsonOption, StrategyOption, console, listed, print_json, print_table
from whimbrel.plan.strategies import DEFAULT

labs = typer.Typer(help="Emulated sites on this host.")


def register(app: typer.Typer) -> None:
    app.add_typer(labs, name="lab")
    app.command()(demo)
    app.command()(bench)


@labs.command("up")
def up(
    topology: Annotated[
        Path | None,
        typer.Option(
            "--topology", metavar="NAME|FILE", help="A shipped one (`whimbrel lab topologies`) or a TOML file."
        ),
    ] = None,
) -> None:
    """Bring up edge nodes, gateways and users in network namespaces, with their agents and a controller."""
    from whimbrel.bench.companion import interruptible
    from whimbrel.lab import lab_up

    with interruptible():
        status = lab_up(topology, print)
    print(f"lab up: {len(status.nodes)} nodes, controller at {status.controller}")


@labs.command("down")
def down() -> None:
    """Remove the lab and all that runs in it. Safe to repeat."""
    from whimbrel.lab import lab_down

    lab_down(print)


@labs.command("status")
def status(json: JsonOption = False) -> None:
    """What of a lab is there."""
    from whimbrel.lab import lab_status

    found = lab_status()
    if json:
        print_json(found)
        return
    if not found.present:
        print("no lab is up: `whimbrel lab up` brings one up")
        return
    if not found.nodes:
        print("there are leftovers of a lab: `whimbrel lab down` removes them")
        return
    print(f"topology {found.topology}, {'up' if found.up else 'NOT whole'}, controller at {found.controller}")
    rows = [
        (
            node.name,
            node.role,
            "alive" if node.alive else "down",
            node.address,
            node.overlay_address or "-",
            node.namespace,
            str(node.pid or "-"),
        )
        for node in found.nodes
    ]
    headings = ("node", "role", "state", "address", "overlay", "namespace", "pid")
    print_table(headings, rows, ["" if node.alive else "bold red" for node in found.nodes])
    if found.links:
        from whimbrel.model.units import format_rate

        links = [
            (
                " - ".join(link.between),
                format_rate(link.rate_bps) if link.rate_bps else "no limit",
                f"{link.delay_ms:g} ms",
                "alive" if link.alive else "down",
                str(link.pid or "-"),
            )
            for link in found.links
        ]
        styles = ["" if link.alive else "bold red" for link in found.links]
        print_table(("link", "rate", "delay", "state", "relay"), links, styles)


@labs.command("topologies")
def topologies(json: JsonOption = False) -> None:
    """The topologies that come with Whimbrel."""
    from whimbrel.lab.topology import load, shipped

    found = [load(Path(name)) for name in shipped()]
    if json:
        print_json(found)
        return
    rows = [
        (
            plan.name,
            str(len(plan.edges)),
            str(len(plan.gateways)),
            str(len(plan.users)),
            str(len(plan.links)),
            plan.summary,
        )
        for plan in found
    ]
    print_table(("topology", "servers", "gateways", "users", "links", "what it is"), rows)


@labs.command("show")
def show(
    topology: Annotated[Path, typer.Argument(metavar="NAME|FILE", help="A shipped topology, or a TOML file.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Draw it as a PNG there.")] = None,
    json: JsonOption = False,
) -> None:
    """Check a topology and show its nodes and links; nothing is brought up."""
    from whimbrel.lab.picture import draw, said
    from whimbrel.lab.routes import homes, wires
    from whimbrel.lab.topology import Edge, load

    plan = load(topology)
    if out is not None:
        draw(plan, out)
    if json:
        print_json(plan)
        return
    at = homes(plan)
    rows = []
    for site in plan.sites:
        edge = site if isinstance(site, Edge) else None
        rows.append(
            (
                site.name,
                edge.tier.value if edge else "gateway",
                at[site.name],
                f"{edge.cpus:g}" if edge and edge.cpus is not None else "-",
                (edge.memory if edge else "") or "-",
                f"{site.position[0]:g}, {site.position[1]:g}" if site.position else "-",
            )
        )
    print_table(("node", "kind", "at", "cpus", "memory", "position (m)"), rows)
    shaped = [
        (wire.a.node, wire.b.node, said(wire.shape)) for wire in wires(plan) if wire.transfer or not wire.shape.is_plain
    ]
    if shaped:
        print_table(("link from", "to", "each way"), shaped)
    if out is not None:
        print(f"drawn to {out}")


def demo(
    scenario: Annotated[
        str, typer.Option("--scenario", metavar="NAME", help="What to show: walk or round-trip.")
    ] = "walk",
    strategy: StrategyOption = DEFAULT,
    headless: Annotated[bool, typer.Option("--headless", help="No live display.")] = False,
    json: JsonOption = False,
) -> int:
    """A running service follows its walking user over three edge nodes, while they keep talking; leaves
    nothing behind."""
    from whimbrel.lab.demo import demo as show

    return show(scenario=scenario, strategy=strategy, headless=headless, json_output=json)


def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="downtime, faults, pages, files, codecs, link, plan, api, dashboard or recovery"
        ),
    ],
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
    workloads: Annotated[
        str, typer.Option("--workload", metavar="NAME,…", help="downtime: what to move (`whimbrel workload ls`).")
    ] = "memory",
    strategies: Annotated[
        str, typer.Option("--strategy", "--strategies", metavar="S,…", help="downtime: strategies to compare.")
    ] = DEFAULT,
    migrations: Annotated[int, typer.Option("-n", "--migrations", min=1, help="downtime: how many of each.")] = 10,
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="MB,…", help="downtime: memory of the workload `memory`.")
    ] = "20,200,1024",
    baseline: Annotated[
        bool,
        typer.Option("--baseline/--no-baseline", help="downtime: also runc checkpoint + copy + restore."),
    ] = True,
    pid: Annotated[
        int, typer.Option("--pid", metavar="PID", min=0, help="codecs: also the memory of this process.")
    ] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="plan: how many regions of each kind.")] = 10,
    exact: Annotated[
        float,
        typer.Option("--exact", metavar="SECONDS", min=0, help="plan: how long HiGHS looks for the optimum of each."),
    ] = 30.0,
    users: Annotated[int, typer.Option("--users", min=1, help="dashboard: how many users there are.")] = 1000,
    moments: Annotated[
        str, typer.Option("--moments", metavar="M,…", help="recovery: when to kill (default: all moments).")
    ] = "",
) -> int:
    """Measure, side by side with the baseline in one run; 1 when something that is promised does not hold."""
    from whimbrel.bench.report import fails
    from whimbrel.model.errors import BadInput

    if json is not None and not json.absolute().parent.is_dir():
        raise BadInput(f"{json.absolute().parent} is no directory: make it first, the figures go to {json.name} there")
    if name == "downtime":
        result = _downtime(workloads, migrations, sizes, strategies, baseline)
    elif name == "faults":
        from whimbrel.bench import faults

        result = faults.run(console())
    elif name == "pages":
        from whimbrel.bench import pages

        result = pages.run(console())
    elif name == "files":
        from whimbrel.bench import files

        result = files.run(console())
    elif name == "codecs":
        from whimbrel.bench import codecs

        result = codecs.run(console(), pid=pid)
    elif name == "link":
        from whimbrel.bench import link

        result = link.run(console())
    elif name == "plan":
        from whimbrel.bench import plan

        result = plan.run(console(), seeds=seeds, exact_s=exact)
    elif name == "api":
        from whimbrel.bench import api

        result = api.run(console())
    elif name == "dashboard":
        from whimbrel.bench import dashboard

        result = dashboard.run(console(), users=users)
    elif name == "recovery":
        from whimbrel.bench import recovery

        result = recovery.run(console(), moments=listed(moments) if moments else recovery.MOMENTS)
    else:
        raise BadInput(
            f"there is no benchmark {name!r}: choose downtime, faults, pages, files, codecs, link, plan, api, "
            "dashboard or recovery"
        )
    if json is not None:
        json.write_text(json_module.dumps(result, indent=2) + "\n")
    return int(fails(result))


def _downtime(workloads: str, migrations: int, sizes: str, strategies: str, baseline: bool) -> dict[str, Any]:
    from whimbrel.bench import downtime
    from whimbrel.model.errors import BadInput

    try:
        sizes_mb = tuple(int(size) for size in listed(sizes))
    except ValueError as error:
        raise BadInput(f"--sizes {sizes!r} is not a list of numbers of MB: write it like 20,200,1024") from error
    options = downtime.Options(
        workload_names=listed(workloads),
        sizes_mb=sizes_mb,
        strategies=listed(strategies),
        migrations=migrations,
        baseline=baseline,
    )
    return downtime.run(options, console())
