"""`controller`, `agent` and `dashboard`: the long-running processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from whimbrel.cli.common import ControllerOption, JsonOption, address_of, note, print_json

OK = 0
controllers = typer.Typer(help="The region's controller: runs until SIGTERM, if nothing else is asked for.")


def register(app: typer.Typer) -> None:
    app.add_typer(controllers, name="controller")
    app.command()(agent)
    app.command()(dashboard)


@contextmanager
def _importing() -> Iterator[None]:
    """What imports make lives as long as the process: nobody looks for garbage in it, now or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@controllers.callback(invoke_without_command=True)
def controller(
    context: typer.Context,
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="TOML file that names the nodes.")] = Path(
        "/etc/whimbrel/controller.toml"
    ),
) -> int:
    """Run the region's controller until SIGTERM."""
    if context.invoked_subcommand is not None:
        return OK
    with _importing():
        from whimbrel.controller.main import run

    return run(config)


@controllers.command("token")
def make_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is for, as logs will tell it.")],
    role: Annotated[
        str,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="operate: all; read: look only; report: a user's equipment; consumer: ETSI MEC.",
        ),
    ] = "operate",
    json: JsonOption = False,
) -> None:
    """Make a token for the API, and the line for the controller's configuration. Nothing is kept here."""
    from whimbrel.controller.access import TokenRole, config_line, new_token
    from whimbrel.model.errors import BadInput
    from whimbrel.model.service import NAME_PATTERN

    if not NAME_PATTERN.fullmatch(name):
        raise BadInput(f"token name {name!r} is not valid: use 1 to 40 of a-z, 0-9 and '-', not at an end")
    if role not in list(TokenRole):
        raise typer.BadParameter(f"there is no role {role!r}: choose from {', '.join(TokenRole)}")
    token = new_token()
    line = config_line(name, TokenRole(role), token)
    if json:
        print_json({"name": name, "role": role, "token": token, "config": line})
        return
    print(token)
    note("that is shown only now; give it to the caller (WHIMBREL_TOKEN), and the controller this, under [api]:")
    note(f"tokens = [{line}]")


def agent(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="TOML file with this node's settings.")
    ] = Path("/etc/whimbrel/agent.toml"),
) -> int:
    """Run the agent of this node until SIGTERM. Needs root."""
    # It computes nothing by it, and must have one thread at its beginning (`migrate.nursery`).
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with _importing():
        from whimbrel.agent.config import load_config
        from whimbrel.agent.main import run
        from whimbrel.model.node import Role

        settings = load_config(config)
        if settings.role is Role.EDGE:  # a gateway's agent needs nothing of what that imports
            import_module("whimbrel.agent.edge")

    return run(settings)


def dashboard(
    controller: ControllerOption = None,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="On 127.0.0.1; 0: any that is free.")
    ] = 8078,
) -> int:
    """Show the controller's dashboard to a browser on this machine, until Ctrl-C."""
    from whimbrel.controller.listen import parse_listen
    from whimbrel.web.relay import serve

    return serve(parse_listen(address_of(controller)), port, lambda address: typer.echo(f"dashboard: {address}"))
