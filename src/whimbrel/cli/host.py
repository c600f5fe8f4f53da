"""`check` and `node ls`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from whimbrel.cli.common import ControllerOption, JsonOption, connect, note, print_json, print_table

if TYPE_CHECKING:
    from whimbrel.model.node import SharedMount

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
                node.role.value,
                "up" if node.up else "down",
                f"{node.host}:{node.port}",
                f"{free.load_1min:.2f}/{free.cpus}" if free else "-",
                format_bytes(free.memory_available_bytes) if free else "-",
                format_bytes(free.disk_available_bytes) if free else "-",
                _shared(node.shared),
                ", ".join(node.services) or "-",
            )
        )
    headings = ("node", "role", "agent", "address", "load/cpus", "free memory", "free disk", "shared", "services")
    print_table(headings, rows, ["" if node.up else "bold red" for node in found])
    for node in found:
        if not node.up:
            note(node.error)
        elif node.shared is not None and (problem := node.shared.problem or node.shared.roots_problem):
            note(f"shared storage of {node.name}: {problem}")


def _shared(mount: SharedMount | None) -> str:
    """Nodes with the same word here can hand services over without a copy of their files."""
    if mount is None:
        return "-"
    return "away" if mount.problem else mount.id[:8]
