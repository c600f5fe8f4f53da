"""`service run | adopt | ls | inspect | logs | exec | rm`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from whimbrel.cli.common import (
    ControllerOption,
    JsonOption,
    connect,
    note,
    print_fields,
    print_json,
    print_table,
)
from whimbrel.cli.workloads import built

if TYPE_CHECKING:
    from whimbrel.model.service import ServiceStatus

services = typer.Typer(help="Services: containers that may move.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The service's name.")]


def register(app: typer.Typer) -> None:
    app.add_typer(services, name="service")


@services.command("run")
def run(
    name: Name,
    image: Annotated[
        str,
        typer.Option(
            "--image", metavar="REF", help="oci:PATH[:TAG], oci-archive:PATH[:TAG], rootfs:DIR or workload:NAME."
        ),
    ],
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="The edge node to start on.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARG…]", help="Command instead of the image's own.")
    ] = None,
    port: Annotated[
        list[str] | None, typer.Option("--port", metavar="N/tcp", help="A port it serves (repeat).")
    ] = None,
    address: Annotated[
        str,
        typer.Option("--address", metavar="IPV4", help="Its address on the overlay; default: a free one."),
    ] = "",
    env: Annotated[list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="Environment (repeat).")] = None,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Memory limit, like 512MiB.")] = "",
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", metavar="NAME:/path[:SIZE]", help="A folder of its own that moves along (repeat)."),
    ] = None,
    workload: Annotated[str, typer.Option("--workload", metavar="TEXT", help="A label for its records.")] = "",
    shared: Annotated[bool, typer.Option("--shared", help="Its root file system lives on shared storage.")] = False,
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """Start a service on an edge node."""
    from whimbrel.model.units import parse_size_bytes

    check_environment(env or ())
    limit_bytes = parse_size_bytes(memory) if memory else 0
    image, recipe = built(image)
    with connect(controller) as client:
        status = client.run_service(
            name,
            absolute(image),
            node,
            address=address,
            ports=port or (recipe.ports if recipe else ()),
            args=args or (),
            env=env or (),
            memory_limit_bytes=limit_bytes,
            workload=workload or (recipe.name if recipe else ""),
            volumes=volume or (),
            shared=shared,
        )
    if json:
        print_json(status)
    else:
        print(f"{name} runs on {status.node} at {status.spec.address.partition('/')[0]}")


@services.command("adopt")
def adopt(
    name: Name,
    engine: Annotated[str, typer.Option("--engine", metavar="ENGINE", help="Whose container it is: docker or lxc.")],
    container: Annotated[str, typer.Option("--container", metavar="ID", help="Its name or id there.")],
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="The edge node where it runs.")],
    port: Annotated[
        list[str] | None, typer.Option("--port", metavar="N/tcp", help="A port it serves (repeat).")
    ] = None,
    address: Annotated[
        str,
        typer.Option("--address", metavar="IPV4", help="Its address on the overlay; default: a free one."),
    ] = "",
    workload: Annotated[str, typer.Option("--workload", metavar="TEXT", help="A label for its records.")] = "",
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """Make a running container of another engine a service: it gets an address on the overlay and may move."""
    with connect(controller) as client:
        status = client.adopt_service(
            name, engine, container, node, address=address, ports=port or (), workload=workload
        )
    if json:
        print_json(status)
    else:
        print(
            f"{name} is {engine}'s container {container} on {status.node}, at {status.spec.address.partition('/')[0]}"
        )


@services.command("ls")
def list_services(controller: ControllerOption = None, json: JsonOption = False) -> None:
    """All services of the region."""
    from whimbrel.model.units import format_bytes

    with connect(controller) as client:
        found = client.service_list()
    if json:
        print_json(found.services)
    else:
        rows = [
            (
                status.spec.name,
                status.node,
                status.state.value,
                status.spec.address.partition("/")[0],
                ", ".join(status.spec.ports) or "-",
                format_bytes(status.rss_bytes),
                str(status.migrations),
            )
            for status in found.services
        ]
        print_table(("service", "node", "state", "address", "ports", "memory", "migrations"), rows)
    if found.unreachable:
        note(f"services on {', '.join(found.unreachable)} are not shown: the agent there does not answer")


@services.command("inspect")
def inspect(name: Name, controller: ControllerOption = None, json: JsonOption = False) -> None:
    """All that is known of one service."""
    with connect(controller) as client:
        status = client.service(name)
    if json:
        print_json(status)
    else:
        print_fields(_fields(status))


@services.command("logs")
def logs(
    name: Name,
    tail: Annotated[str, typer.Option("--tail", metavar="SIZE", help="At most that much, from the end.")] = "64KiB",
    controller: ControllerOption = None,
) -> None:
    """What the service wrote to its output, on all nodes it ran on."""
    from whimbrel.model.units import parse_size_bytes

    tail_bytes = parse_size_bytes(tail)
    with connect(controller) as client:
        sys.stdout.write(client.logs(name, tail_bytes))


@services.command("exec", context_settings={"allow_interspersed_args": False})
def execute(
    name: Name,
    argv: Annotated[list[str], typer.Argument(metavar="COMMAND…", help="What to run inside.")],
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> int:
    """Run a command inside the service. Exit code 1 when it failed; options come before NAME."""
    with connect(controller) as client:
        result = client.exec(name, argv)
    if json:
        print_json(result)
    else:
        sys.stdout.write(result.stdout)
        sys.stderr.write(result.stderr)
    if result.exit_code != 0:
        note(f"{argv[0]} ended with exit code {result.exit_code} in {name}")
        return 1
    return 0


@services.command("probe")
def probe(
    name: Name,
    interval: Annotated[str, typer.Option("--interval", metavar="TIME", help="Time between the two rounds.")] = "100ms",
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """How much memory the service has, and how much of it it writes: what a migration would have to carry."""
    from whimbrel.model.units import format_bytes, parse_duration_ms

    interval_s = parse_duration_ms(interval) / 1e3
    with connect(controller) as client:
        found = client.probe(name, interval_s)
    if json:
        print_json(found)
        return
    print(
        f"{name} on {found.node}: {format_bytes(found.checkpoint_bytes)} of memory, of which "
        f"{format_bytes(found.delta_bytes)} were written in {interval_s * 1e3:g} ms"
    )


@services.command("release")
def release(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Services of other engines.")],
    controller: ControllerOption = None,
) -> None:
    """Give containers back to their engines: they run on there, without an address on the overlay."""
    with connect(controller) as client:
        for name in names:
            client.release_service(name)
            print(f"released {name}")


@services.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Services to stop and remove.")],
    keep_volumes: Annotated[
        bool, typer.Option("--keep-volumes", help="Leave their volumes on the node, for a service of the same name.")
    ] = False,
    controller: ControllerOption = None,
) -> None:
    """Stop services and remove all they kept."""
    with connect(controller) as client:
        for name in names:
            client.remove_service(name, keep_volumes=keep_volumes)
            print(f"removed {name}")


def check_environment(entries: Iterable[str]) -> None:
    """Raises BadInput for an entry that is no KEY=VALUE."""
    from whimbrel.model.errors import BadInput

    for entry in entries:
        if "=" not in entry[1:]:
            raise BadInput(f"--env {entry!r} is not valid: write KEY=VALUE")


def absolute(image: str) -> str:
    """Agents do not know the directory that this command was called in."""
    from pathlib import Path

    kind, separator, path = image.partition(":")
    if separator and path and not path.startswith("/"):
        return f"{kind}:{Path.cwd()}/{path}"
    return image


def _fields(status: ServiceStatus) -> list[tuple[str, str]]:
    from datetime import UTC, datetime

    from whimbrel.model.units import format_bytes

    spec = status.spec
    started = datetime.fromtimestamp(status.started_unix_s, UTC) if status.started_unix_s else None
    return [
        ("service", spec.name),
        ("node", status.node),
        ("state", status.state.value),
        ("address", spec.address),
        ("mac", status.mac),
        ("ports", ", ".join(spec.ports)),
        ("volumes", ", ".join(spec.volumes)),
        ("engine", spec.engine.value),
        ("container", status.container),
        ("image", spec.image),
        ("digest", status.image_digest),
        ("shared", status.shared),
        ("command", " ".join(spec.args)),
        ("pid", str(status.pid)),
        ("processes", str(status.processes)),
        ("memory", format_bytes(status.rss_bytes)),
        ("limit", format_bytes(spec.memory_limit_bytes) if spec.memory_limit_bytes else ""),
        ("started", f"{started:%Y-%m-%d %H:%M:%S} UTC" if started else ""),
        ("migrations", str(status.migrations)),
        ("workload", spec.workload),
    ]
