"""`whimbrel ue`: a virtual user that moves, is handed over, and talks to its application."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from whimbrel.bench.probe import Probe
    from whimbrel.lab.topology import Topology
    from whimbrel.ran.layout import RadioLayout, Walker
    from whimbrel.ran.port import Radio


def register(app: typer.Typer) -> None:
    app.command()(ue)


def ue(
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="Which user; default: the first one.")] = "",
    topology: Annotated[
        Path | None, typer.Option("--topology", metavar="FILE", help="With [radio]; default: that of the lab.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option("--path", metavar="FILE", help="A GPX file or a SUMO trace, not the topology's way.")
    ] = None,
    vehicle: Annotated[str, typer.Option("--vehicle", metavar="ID", help="Which vehicle of a SUMO trace.")] = "",
    geo: Annotated[bool, typer.Option("--geo", help="The SUMO trace has degrees (--fcd-output.geo).")] = False,
    path_known: Annotated[
        bool | None, typer.Option("--path-known/--path-unknown", help="Forecast handovers by the way, or by slopes.")
    ] = None,
    workload: Annotated[
        str, typer.Option("--workload", metavar="NAME", help="The application (`whimbrel workload ls`).")
    ] = "",
    address: Annotated[
        str, typer.Option("--address", metavar="HOST[:PORT]", help="Where the application's service is.")
    ] = "",
    application: Annotated[
        str,
        typer.Option("--application", metavar="NAME", help="Ask the controller for it (`whimbrel application ls`)."),
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="What the service was told (repeat).")
    ] = None,
    report_to: Annotated[
        str, typer.Option("--report-to", metavar="ADDRESS", help="Post reports there: unix:PATH, tcp:HOST:PORT, a URL.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON lines; - is standard output.")] = Path("-"),
    decide: Annotated[
        str, typer.Option("--decide", metavar="WHO", help="Who decides on handovers: user or network.")
    ] = "user",
    orders: Annotated[bool, typer.Option("--orders", help="Read orders as JSON lines from standard input.")] = False,
    radio: Annotated[
        str, typer.Option("--radio", metavar="WHICH", help="lab, or idle: moves nothing; default: lab if one is up.")
    ] = "",
    interruption: Annotated[
        str, typer.Option("--interruption", metavar="TIME", help="How long a handover lasts; default: the topology's.")
    ] = "",
    interval: Annotated[str, typer.Option("--interval", metavar="TIME", help="Between measurements.")] = "200ms",
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="N", min=0, help="How long on the way's clock; 0: to its end.")
    ] = 0.0,
    speed_up: Annotated[
        float, typer.Option("--speed-up", metavar="N", help="The way's clock runs that much faster.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Of shadowing and noise; default: the topology's.")
    ] = None,
) -> None:
    """A virtual user: moves along its way, reports what it hears, is handed over, talks to a service."""
    import msgspec

    from whimbrel.model.errors import BadInput
    from whimbrel.model.units import parse_duration_ms
    from whimbrel.ue.device import Decides, Settings
    from whimbrel.ue.run import Plan, run

    if decide not in (Decides.USER, Decides.NETWORK):
        raise BadInput(f"--decide {decide!r} is not valid: choose user or network")
    lab, is_up = _lab(topology)
    layout = _layout(lab)
    if interruption:
        rule = msgspec.structs.replace(layout.handover, interruption_ms=parse_duration_ms(interruption))
        rule.check("--interruption")
        layout = msgspec.structs.replace(layout, handover=rule)
    walker = _walker(layout, lab, user, path, vehicle, geo)
    if path_known is not None:
        walker = msgspec.structs.replace(walker, path_known=path_known)
    if bool(workload) != bool(address):
        raise BadInput("--workload and --address belong together: name the application and where its service is")
    if application and workload:
        raise BadInput("--application asks the controller where the service is: leave --workload and --address out")
    plan = Plan(
        layout=layout,
        walker=walker,
        settings=Settings(
            interval_s=parse_duration_ms(interval) / 1000,
            duration_s=seconds,
            speed_up=speed_up,
            decides=Decides(decide),
        ),
        seed=seed,
        out=out,
        report_to=report_to,
        read_orders=orders,
        application=application,
    )
    client = _client(workload, address, settings or []) if workload else None
    with contextlib.ExitStack() as closing:
        run(plan, _radio(radio, lab, layout, walker.name, is_up, closing), client)


def _lab(topology: Path | None) -> tuple[Topology, bool]:
    """The topology, and whether the lab of that name is up."""
    from whimbrel.lab.config import DEFAULT_LAB_DIR
    from whimbrel.lab.record import recorded
    from whimbrel.lab.topology import load
    from whimbrel.model.errors import BadInput

    if topology is not None:
        wanted = load(topology)
        return wanted, all(wanted.namespace_path(name).exists() for name in wanted.namespaces)
    found = recorded(DEFAULT_LAB_DIR)
    if found is None:
        raise BadInput("no lab is up, so --topology must name a file with [radio] (`--topology walk` is shipped)")
    return found, True


def _layout(lab: Topology) -> RadioLayout:
    from whimbrel.model.errors import BadInput

    if lab.radio is None:
        raise BadInput(f"the topology {lab.name} has no [radio]: see docs/radio.md")
    return lab.radio


def _walker(layout: RadioLayout, lab: Topology, user: str, path: Path | None, vehicle: str, geo: bool) -> Walker:
    """The user and its way: the topology's, or the one that the options name."""
    import msgspec

    from whimbrel.model.errors import BadInput
    from whimbrel.ran.layout import Walker

    names = [each.name for each in lab.users]
    name = user or (layout.users[0].name if layout.users else names[0] if names else "")
    if name not in names:
        raise BadInput(f"the topology has no user {name!r}, only {', '.join(names) or 'none'}")
    if path is None:
        if vehicle or geo:
            raise BadInput("--vehicle and --geo say more of --path: name the trace")
        return layout.walker(name)
    known = [each for each in layout.users if each.name == name] or [Walker(name=name)]
    file = str(path.absolute())
    way = {"sumo": file, "vehicle": vehicle, "geo": geo} if vehicle else {"gpx": file}
    return msgspec.structs.replace(known[0], **{"waypoints": (), "gpx": "", "sumo": "", "vehicle": "", **way})


def _client(workload: str, address: str, told: list[str]) -> Callable[[], Probe]:
    from whimbrel.bench.probe import Probe
    from whimbrel.model.errors import BadInput
    from whimbrel.workloads import builder, catalogue

    recipe = catalogue.find(workload)
    host, _, port = address.partition(":")
    if not host or (port and not port.isdigit()):
        raise BadInput(f"--address {address!r} is not valid: write HOST or HOST:PORT")
    for entry in told:
        if "=" not in entry[1:]:
            raise BadInput(f"--set {entry!r} is not valid: write KEY=VALUE")
    values = dict(entry.split("=", 1) for entry in told)
    data = builder.CACHE / f"{recipe.name}.client"
    return lambda: Probe(recipe, host, port=int(port or 0), settings=values, data=data if data.is_dir() else None)


def _radio(
    which: str, lab: Topology, layout: RadioLayout, user: str, is_up: bool, closing: contextlib.ExitStack
) -> Radio:
    """The radio, and this process in the user's place if that is in a lab."""
    from whimbrel.lab.radio import LabRadio
    from whimbrel.model.errors import BadInput, Refused
    from whimbrel.network import netns
    from whimbrel.ue.idle import IdleRadio

    if which not in ("", "lab", "idle"):
        raise BadInput(f"--radio {which!r} is not valid: choose lab or idle")
    if which == "idle" or (not which and not is_up):
        return IdleRadio(layout.handover.interruption_ms)
    if not is_up:
        raise Refused(f"the lab of topology {lab.name} is not up: run `whimbrel lab up`, or choose --radio idle")
    radio = closing.enter_context(
        LabRadio(lab, interruption_ms=layout.handover.interruption_ms, in_flight=layout.handover.in_flight)
    )
    netns.enter(lab.namespace_path(user))
    return radio
