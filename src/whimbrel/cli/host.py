"""`check` and `node ls`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from whimbrel.cli.common import ControllerOption, JsonOption, connect, note, print_fields, print_json, print_table

if TYPE_CHECKING:
    from whimbrel.model.node import SharedMount

Name = Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")]
nodes = typer.Typer(help="The nodes of the region.")


def register(app: typer.Typer) -> None:
    app.command()(check)
    app.add_typer(nodes, name="node")


def check(json: JsonOption = False) -> int:
    """What this host can do, what is missing, how to fix it. Exit code 1 when something needed is missing."""
    from whimbrel.agent.checks import Status, run_checks

    results = run_checks()
    failed = [result for result in results if result.status is Status.FAIL]
    if json:
        print_json({"ok": not failed, "checks": results})
    else:
        styles = {Status.OK: "", Status.WARN: "yellow", Status.FAIL: "bold red"}
        print_table(
            ("status", "what", "found"),
            [(result.status.value, result.name, result.reason) for result in results],
            [styles[result.status] for result in results],
        )
        for result in results:
            if result.fix:
                print(f"{result.name}: {result.fix}")
    if failed:
        note(f"this host lacks {', '.join(result.name for result in failed)}: see above for the way out")
        return 1
    return 0


@nodes.command("ls")
def list_nodes(controller: ControllerOption = None, json: JsonOption = False) -> None:
    """All nodes, live."""
    from whimbrel.model.units import format_bytes

    with connect(controller) as client:
        found = client.nodes()
    if json:
        print_json(found)
        return
    rows = []
    for node in found:
        free = node.resources
        rows.append(
            (
                node.name,
                node.role.value if node.tier == "edge" else node.tier.value,
                "up" if node.up else "down",
                f"{node.host}:{node.port}",
                f"{free.load_1min:.2f}/{free.cpus}" if free else "-",
                f"{free.cpus_used:.2f}/{free.cpu_capacity:g}" if free and node.role == "edge" else "-",
                f"{free.computing_power:.0f}" if free and free.computing_power else "-",
                format_bytes(free.memory_available_bytes) if free else "-",
                format_bytes(free.disk_available_bytes) if free else "-",
                _shared(node.shared),
                ", ".join(node.services) or "-",
            )
        )
    headings = ("node", "role", "agent", "address", "load/cpus", "used/capacity", "power", "free memory", "free disk",
                "shared", "services")  # fmt: skip
    print_table(headings, rows, ["" if node.up else "bold red" for node in found])
    for node in found:
        if not node.up:
            note(node.error)
        elif node.shared is not None and (problem := node.shared.problem or node.shared.roots_problem):
            note(f"shared storage of {node.name}: {problem}")


@nodes.command("inspect")
def inspect(name: Name, controller: ControllerOption = None, json: JsonOption = False) -> None:
    """All that is known of one node: capacity and use, computing power, the way to every other node."""
    from whimbrel.model.units import format_bytes, format_rate

    with connect(controller) as client:
        node = client.node(name)
    if json:
        print_json(node)
        return
    free = node.resources
    fields = [("node", node.name), ("role", node.role.value), ("agent", "up" if node.up else f"down: {node.error}")]
    if free is not None:
        fields += [
            ("tier", node.tier.value if node.role == "edge" else ""),
            ("users' addresses", "translated" if node.nat else ""),
            ("processors",
             f"{free.cpus_used:.2f} of {free.cpu_capacity:g} used by services; the machine has {free.cpus}"),
            ("computing power", f"{free.computing_power:.1f} events/s" if free.computing_power else ""),
            ("memory", f"{format_bytes(free.memory_used_bytes)} of {format_bytes(free.memory_capacity_bytes)} used by "
                       f"services, {format_bytes(free.memory_available_bytes)} free"),
            ("disk", f"{format_bytes(free.disk_available_bytes)} of {format_bytes(free.disk_total_bytes)} free"),
            ("network", f"{format_rate(free.network_received_bps)} in, {format_rate(free.network_sent_bps)} out"
                        + (f", of {format_rate(free.network_capacity_bps)}" if free.network_capacity_bps else "")),
        ]  # fmt: skip
    print_fields(fields)
    if node.service_use:
        rows = [(use.name, f"{use.cpus_used:.2f}", format_bytes(use.memory_bytes)) for use in node.service_use]
        print_table(("service", "processors", "memory"), rows)
    if node.paths:
        away = [(path.to, "-" if path.round_trip_ms is None else f"{path.round_trip_ms:.2f} ms",
                 format_rate(path.rate_bps) if path.rate_bps else "-") for path in node.paths]  # fmt: skip
        print_table(("path to", "round trip", "rate"), away)


@nodes.command("benchmark")
def benchmark(name: Name, controller: ControllerOption = None, json: JsonOption = False) -> None:
    """Measure the computing power of an edge node's machine again, by half a second of work."""
    with connect(controller) as client:
        power = client.measure_power(name)
    if json:
        print_json(power)
    else:
        print(f"the machine of {name}: {power.events_per_s:.1f} events/s on one processor")


def _shared(mount: SharedMount | None) -> str:
    """Nodes with the same word here can hand services over without a copy of their files."""
    if mount is None:
        return "-"
    return "away" if mount.problem else mount.id[:8]
