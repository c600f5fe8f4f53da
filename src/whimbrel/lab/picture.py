"""A topology as a picture: routers where they are on the map, else in a row; the cloud above; at each what is there."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from whimbrel.lab.routes import Wire, homes, wires
from whimbrel.lab.topology import CONTROLLER, Edge, Gateway, Topology, User
from whimbrel.model.errors import BadInput
from whimbrel.model.link import LinkShape
from whimbrel.model.node import Tier
from whimbrel.model.units import format_rate

# the colours of Okabe and Ito, which people with any kind of colour vision tell apart
BLUE, SKY, GREEN, YELLOW, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#D55E00"
INK, GREY = "#333333", "#777777"
DPI = 110
COLUMN, CLOUD_ROW, STEP = 2.8, 3.4, 0.62  # units of the drawing
Point = tuple[float, float]


def draw(topology: Topology, path: Path) -> None:
    """Write a PNG. Raises BadInput when the file cannot be written."""
    places = _router_places(topology)
    lowest = min(y - STEP * (2 + len(_below(topology, router))) for router, (_, y) in places.items())
    highest = max(y + STEP * (1 + len(_above(topology, router))) for router, (_, y) in places.items())
    left, right = min(x for x, _ in places.values()) - COLUMN / 2, max(x for x, _ in places.values()) + COLUMN / 2
    figure = Figure(
        figsize=(max(7.0, 1.1 * (right - left)), max(4.0, 0.9 * (highest - lowest))), dpi=DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_title(
        f"{topology.name}: {topology.summary}" if topology.summary else topology.name, color=INK, fontsize=10
    )
    for wire in wires(topology):
        if wire.transfer:
            _link(axes, wire, places[wire.a.node], places[wire.b.node])
    for router, place in places.items():
        _router(axes, topology, router, place)
    for user in topology.users:
        _user(axes, topology, user, places)
    axes.set_xlim(left, right)
    axes.set_ylim(lowest - 0.4, highest)
    try:
        figure.savefig(path, format="png", metadata={"Software": None})
    except OSError as error:
        raise BadInput(f"the picture cannot be written to {path}: {error.strerror or error}") from error


def _router_places(topology: Topology) -> dict[str, Point]:
    """West to east by the position of what is there, else as they are named; clouds above the middle."""
    at = homes(topology)
    there: dict[str, list[Edge | Gateway]] = {router: [] for router in topology.router_names}
    for site in topology.sites:
        there[at[site.name]].append(site)

    def is_cloud(router: str) -> bool:
        found = there[router]
        return bool(found) and all(isinstance(site, Edge) and site.tier is Tier.CLOUD for site in found)

    ground = [router for router in there if not is_cloud(router)]
    clouds = [router for router in there if is_cloud(router)]
    places = _on_the_map({router: _middle(there[router]) for router in ground})
    x, top = sum(x for x, _ in places.values()) / len(places), max((y for _, y in places.values()), default=0.0)
    first = x - COLUMN * (len(clouds) - 1) / 2
    return places | {router: (first + COLUMN * number, top + CLOUD_ROW) for number, router in enumerate(clouds)}


def _middle(sites: list[Edge | Gateway]) -> Point | None:
    known = [site.position for site in sites if site.position is not None]
    return (sum(x for x, _ in known) / len(known), sum(y for _, y in known) / len(known)) if known else None


def _on_the_map(positions: dict[str, Point | None]) -> dict[str, Point]:
    """Scaled so that the nearest two are a column apart; in a row when they have no places, or not each its own."""
    known = [position for position in positions.values() if position is not None]
    nearest = min((math.dist(a, b) for a, b in itertools.combinations(known, 2)), default=0.0)
    if len(known) < len(positions) or not nearest:
        return {router: (COLUMN * number, 0.0) for number, router in enumerate(positions)}
    scale = COLUMN / nearest
    return {router: (scale * place[0], scale * place[1]) for router, place in positions.items() if place is not None}


def _link(axes: Axes, wire: Wire, a: Point, b: Point) -> None:
    axes.plot(*zip(a, b, strict=True), color=INK, lw=1.2, zorder=1)
    share = 0.65 if b[1] - a[1] > CLOUD_ROW / 2 else 0.5  # off the names that stand above a router
    x, y = a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
    axes.text(x, y, said(wire.shape), fontsize=7, ha="center", va="center", color=INK,
              bbox={"fc": "white", "ec": "none", "pad": 1}, zorder=2)  # fmt: skip


def said(shape: LinkShape) -> str:
    """``100 Mbit/s, 50 ms``."""
    rate = [format_rate(shape.rate_bps)] if shape.rate_bps else []
    return ", ".join([*rate, *([f"{shape.delay_ms:g} ms"] if shape.delay_ms else [])]) or "no limit"


def _below(topology: Topology, router: str) -> list[Gateway]:
    return [gateway for gateway in topology.gateways if topology.router_of(gateway) == router]


def _above(topology: Topology, router: str) -> list[tuple[str, str]]:
    """What stands above a router: name and colour."""
    here = [edge for edge in topology.edges if topology.router_of(edge) == router]
    found = [(edge.name + _power(edge), BLUE if edge.tier is Tier.EDGE else GREEN) for edge in here]
    if homes(topology)[CONTROLLER] == router:
        found.append(("controller", VERMILION))
    if topology.storage is not None and topology.router_of(topology.storage) == router:
        found.append((f"{topology.storage.name} (storage)", GREY))
    return found


def _power(edge: Edge) -> str:
    return f" ({edge.cpus:g} CPU)" if edge.cpus is not None else ""


def _router(axes: Axes, topology: Topology, router: str, place: Point) -> None:
    x, y = place
    _box(axes, place, router, INK, "white", round_=True)
    for number, (name, colour) in enumerate(_above(topology, router), 1):
        _box(axes, (x, y + STEP * number), name, colour, "white")
    for number, gateway in enumerate(_below(topology, router), 1):
        _box(axes, (x, y - STEP * number), f"{gateway.name}{' (NAT)' if gateway.nat else ''}", SKY, INK)


def _user(axes: Axes, topology: Topology, user: User, places: dict[str, Point]) -> None:
    """Below the gateway that it uses first."""
    router = topology.router_of(topology.gateway(user.attached[0]))
    before = [other for other in topology.users[: topology.users.index(user)]
              if topology.router_of(topology.gateway(other.attached[0])) == router]  # fmt: skip
    x, y = places[router]
    here = (x + 0.7 * len(before), y - STEP * (1.4 + len(_below(topology, router))))
    axes.plot((x, here[0]), (y, here[1]), color=INK, lw=0.9, ls=":", zorder=0)
    _box(axes, here, user.name, YELLOW, INK)


def _box(axes: Axes, place: Point, name: str, colour: str, ink: str, *, round_: bool = False) -> None:
    shape = {"boxstyle": "round,pad=0.35" if round_ else "square,pad=0.3", "fc": colour, "ec": "white"}
    axes.text(*place, name, fontsize=8, ha="center", va="center", color=ink, bbox=shape, zorder=3)
