"""One virtual user from beginning to end: puts the parts together, runs them, takes them apart."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from whimbrel.bench.probe import Probe
from whimbrel.model.application import Session
from whimbrel.model.errors import BadInput
from whimbrel.model.radio import UserEvent
from whimbrel.ran.layout import RadioLayout, Walker
from whimbrel.ran.port import Radio
from whimbrel.ran.user import UserRadio
from whimbrel.ue.application import Application
from whimbrel.ue.device import Device, Settings
from whimbrel.ue.orders import read_lines
from whimbrel.ue.paths import track_for
from whimbrel.ue.sinks import Lines, Posts, Sink, discover
from whimbrel.workloads import builder, catalogue

STDOUT = Path("-")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one user is to do. `folder`: where files named in the layout count from; `out`: JSON lines, ``-`` for
    standard output; `report_to`: the controller, "" for none; `read_orders`: also from standard input. `application`:
    to be asked of the controller, which says where its service is."""

    layout: RadioLayout
    walker: Walker
    settings: Settings
    folder: Path = Path(".")
    seed: int | None = None
    out: Path = STDOUT
    report_to: str = ""
    read_orders: bool = False
    application: str = ""


def run(plan: Plan, radio: Radio, client: Callable[[], Probe] | None = None) -> None:
    """Until the end of the way or of the duration, SIGINT or SIGTERM. `client` makes the application's client. Raises
    BadInput before anything is started."""
    _check(plan.settings)
    if plan.application and not plan.report_to:
        raise BadInput("an application is asked of the controller: name it with --report-to")
    name = plan.walker.name
    track = track_for(plan.layout, plan.walker, plan.folder)
    air = plan.layout.air(plan.seed)
    view = UserRadio(air, plan.layout.handover, track if plan.walker.path_known else None)
    stop = threading.Event()
    sinks: list[Sink] = []

    def tell(event: UserEvent) -> None:
        for sink in sinks:
            sink.tell(event)

    with contextlib.ExitStack() as closing:
        sinks.append(Lines(_opened(plan.out, closing)))
        application = None
        if plan.application:

            def client() -> Probe:
                session = discover(plan.report_to, name, plan.application)
                device.note("ready", f"{session.service} is on {session.server} at {session.address}")
                return probe_of(session)

        if client is not None:
            application = Application(
                name, client, sinks[0].tell, lambda text: device.note("application", text),
                every_s=plan.settings.interval_s / plan.settings.speed_up,
            )  # fmt: skip
        figures = application.figures if application is not None else None
        device = Device(name, air, track, view, radio, tell, plan.settings, figures=figures)
        if plan.report_to:
            posts = Posts(plan.report_to, name, device.order, lambda text: device.note("controller", text))
            sinks.append(posts)
            closing.callback(posts.close)
        closing.enter_context(_stopped_by_signals(stop))
        if plan.read_orders:
            reader = (sys.stdin.fileno(), device.order, lambda text: device.note("order", text))
            threading.Thread(target=read_lines, args=reader, name="orders", daemon=True).start()
        if application is not None:
            device.listen_first()  # the application has a network from its first packet on
            closing.callback(application.close)
            application.start()
        device.run(stop)


def _check(settings: Settings) -> None:
    limits = {"interval_s": (0.01, 10.0), "speed_up": (0.01, 1000.0), "duration_s": (0.0, 1e9)}
    for field, (low, high) in limits.items():
        value = getattr(settings, field)
        if not low <= value <= high:
            raise BadInput(f"{field} {value:g} is not possible: use {low:g} to {high:g}")
    if settings.interval_s / settings.speed_up < 0.01:
        raise BadInput(
            f"measurements every {settings.interval_s:g} s at {settings.speed_up:g} times the speed come too fast: "
            "use a longer interval"
        )


def _opened(out: Path, closing: contextlib.ExitStack) -> BinaryIO:
    if out == STDOUT:
        return sys.stdout.buffer
    try:
        return closing.enter_context(out.open("wb"))
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}") from error


def probe_of(session: Session) -> Probe:
    """The client of the workload that the service is. Raises BadInput for one that has no client."""
    recipe = catalogue.find(session.workload)
    told = dict(entry.split("=", 1) for entry in session.env if "=" in entry)
    data = builder.CACHE / f"{recipe.name}.client"
    return Probe(recipe, session.address, settings=told, data=data if data.is_dir() else None)


@contextlib.contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
