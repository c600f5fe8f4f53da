"""Where nodes and cells lie, as the configuration says: for maps and for what is told by zone. Metres from one origin,
the same that users report from. The planner reckons with what users hear, not with places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from whimbrel.model.errors import BadInput

FURTHEST_M = 1e7
MOST_ZONE_NAME = 60


class Place(msgspec.Struct, frozen=True, kw_only=True):
    x_m: float
    y_m: float


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """What a base station covers. `gateway`: the node it leads to; `reach_m`: how far it is understood, by distance
    alone; `zone`: a name that several cells may share, "" for none."""

    name: str
    gateway: str
    zone: str = ""
    place: Place | None = None
    reach_m: float | None = None


def place_of(whose: str, x_m: float | None, y_m: float | None) -> Place | None:
    """None where nothing was said. Raises BadInput."""
    if x_m is None and y_m is None:
        return None
    if x_m is None or y_m is None:
        raise BadInput(f"{whose}: x_m and y_m belong together: give both or none")
    if not (abs(x_m) < FURTHEST_M and abs(y_m) < FURTHEST_M):  # also refuses NaN
        raise BadInput(f"{whose}: {x_m:g}, {y_m:g} is no place: give metres from the origin")
    return Place(x_m=x_m, y_m=y_m)


def cell_of(
    name: str, *, zone: str = "", x_m: float | None = None, y_m: float | None = None, reach_m: float | None = None
) -> Cell:
    """Of a base station that bears its gateway's name. Raises BadInput."""
    whose = f"base station {name}"
    if reach_m is not None and not 0 < reach_m < FURTHEST_M:
        raise BadInput(f"{whose}: reach_m {reach_m:g} is not possible: give metres, more than 0")
    if len(zone) > MOST_ZONE_NAME or not zone.isprintable():
        raise BadInput(f"{whose}: zone {zone!r} is no name: use at most {MOST_ZONE_NAME} printable characters")
    return Cell(name=name, gateway=name, zone=zone, place=place_of(whose, x_m, y_m), reach_m=reach_m)


def with_cells(places: Mapping[str, Place], cells: Iterable[Cell]) -> dict[str, Place]:
    """Places of nodes; a gateway that has none is where its cell is."""
    return {cell.gateway: cell.place for cell in cells if cell.place is not None} | dict(places)
