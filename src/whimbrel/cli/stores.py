"""`volume ls | rm` and `image ls | push`."""

from __future__ import annotations

from typing import Annotated

import typer

from whimbrel.cli.common import ControllerOption, JsonOption, connect, note, print_json, print_table

volumes = typer.Typer(help="Volumes of services, also of ones that are gone.")
images = typer.Typer(help="Images unpacked on the nodes.")


def register(app: typer.Typer) -> None:
    app.add_typer(volumes, name="volume")
    app.add_typer(images, name="image")


@volumes.command("ls")
def list_volumes(controller: ControllerOption = None, json: JsonOption = False) -> None:
    """All volumes of the region."""
    from whimbrel.model.units import format_bytes

    with connect(controller) as client:
        found = client.volumes()
    if json:
        print_json(found.volumes)
    else:
        rows = [
            (
                f"{volume.service}/{volume.name}",
                volume.node,
                volume.path,
                format_bytes(volume.used_bytes),
                format_bytes(volume.size_bytes) if volume.size_bytes else "-",
                "in use" if volume.in_use else "kept",
            )
            for volume in found.volumes
        ]
        print_table(("volume", "node", "path", "used", "size", "state"), rows)
    if found.unreachable:
        note(f"volumes on {', '.join(found.unreachable)} are not shown: the agent there does not answer")


@volumes.command("rm")
def remove_volume(
    names: Annotated[list[str], typer.Argument(metavar="SERVICE/NAME…", help="Volumes, as `volume ls` shows them.")],
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="The one on this node.")] = "",
    controller: ControllerOption = None,
) -> None:
    """Remove volumes that outlived their services."""
    from whimbrel.model.errors import BadInput

    for name in names:
        if name.count("/") != 1:
            raise BadInput(f"volume {name!r} is not valid: write SERVICE/NAME, as `whimbrel volume ls` shows it")
    with connect(controller) as client:
        for name in names:
            service, _, volume = name.partition("/")
            client.remove_volume(service, volume, node)
            print(f"removed {name}")


@images.command("ls")
def list_images(controller: ControllerOption = None, json: JsonOption = False) -> None:
    """The images of all nodes."""
    from whimbrel.model.units import format_bytes

    with connect(controller) as client:
        found = client.images()
    if json:
        print_json(found.images)
    else:
        rows = [
            (image.digest.removeprefix("sha256:")[:12], image.node, format_bytes(image.size_bytes), image.reference)
            for image in found.images
        ]
        print_table(("image", "node", "size", "reference"), rows)
    if found.unreachable:
        note(f"images on {', '.join(found.unreachable)} are not shown: the agent there does not answer")


@images.command("push")
def push(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Its digest, the beginning of it, or its reference.")],
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="Where to.")],
    source: Annotated[str, typer.Option("--from", metavar="NODE", help="Which node sends it; default: any.")] = "",
    controller: ControllerOption = None,
    json: JsonOption = False,
) -> None:
    """Bring an image to a node before a service needs it there."""
    from whimbrel.model.units import format_bytes

    with connect(controller) as client:
        pushed = client.push_image(image, to, source)
    if json:
        print_json(pushed)
    elif pushed.sent_bytes:
        print(f"{to} has the image: {format_bytes(pushed.sent_bytes)} came from {pushed.source}")
    else:
        print(f"{to} has the image already")
