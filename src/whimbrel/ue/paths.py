"""Ways of users out of files: GPX tracks, and SUMO's floating-car traces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import gpxpy
import gpxpy.gpx

from whimbrel.model.errors import BadInput
from whimbrel.ran.layout import RadioLayout, Walker
from whimbrel.ran.mobility import Fix, Leg, Origin, Track, track_of, walk

MOST_IDS = 5  # vehicles named in an error


def track_for(layout: RadioLayout, walker: Walker, folder: Path) -> Track:
    """The track of a user; names of files count from `folder`. Raises BadInput, naming file and place in it."""
    if walker.gpx:
        return from_gpx(layout, walker, folder / walker.gpx)
    if walker.sumo:
        return from_sumo(layout, walker, folder / walker.sumo)
    return layout.track(walker)


def from_gpx(layout: RadioLayout, walker: Walker, file: Path) -> Track:
    """A GPX 1.0 or 1.1 file: its track points one after the other, else its route's, else its waypoints. Points with
    times keep them; without any, the way is gone at the user's speed."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            found = gpxpy.parse(stream)
    except OSError as error:
        raise BadInput(f"the GPX file {file} cannot be read: {error.strerror}") from error
    except (gpxpy.gpx.GPXException, ValueError) as error:
        raise BadInput(f"{file} is no GPX file: {error}") from error
    origin = layout.origin_for(f"the GPX file {file}")
    points = [(point.latitude, point.longitude, point.time) for point in _points(found)]
    timed = sum(time is not None for _, _, time in points)
    if timed not in (0, len(points)):
        raise BadInput(f"{file}: {len(points) - timed} of {len(points)} points have no time: give it to all, or none")
    places = [origin.project(lat, lon, f"{file}: point {n}") for n, (lat, lon, _) in enumerate(points, 1)]
    most = walker.max_speed_m_per_s
    if timed:
        times_s = [time.timestamp() for _, _, time in points if time is not None]
        fixes = (Fix(t_s, *place) for t_s, place in zip(times_s, places, strict=True))
        return track_of(fixes, str(file), course=walker.course, max_speed_m_per_s=most)
    legs = [Leg(*place, walker.speed_m_per_s) for place in places]
    return walk(legs, str(file), course=walker.course, max_speed_m_per_s=most)


def _points(found: gpxpy.gpx.GPX) -> list[gpxpy.gpx.GPXTrackPoint | gpxpy.gpx.GPXRoutePoint | gpxpy.gpx.GPXWaypoint]:
    tracks = [point for track in found.tracks for segment in track.segments for point in segment.points]
    return [*tracks] or [point for route in found.routes for point in route.points] or [*found.waypoints]


def from_sumo(layout: RadioLayout, walker: Walker, file: Path) -> Track:
    """One vehicle (or person) of a trace that SUMO wrote with ``--fcd-output``. Read as a stream: such files have
    gigabytes."""
    origin = layout.origin_for(f"the trace {file}") if walker.geo else None
    seen: dict[str, None] = {}
    fixes = _fixes(file, walker.vehicle, origin, seen)
    try:
        first = next(fixes)
    except StopIteration:
        some = ", ".join(seen) or "none"
        more = " and others" if len(seen) == MOST_IDS else ""
        raise BadInput(f"{file} has no vehicle {walker.vehicle!r} in it: it has {some}{more}") from None
    what = f"{file}, vehicle {walker.vehicle}"
    whole = itertools.chain([first], fixes)
    return track_of(whole, what, course=walker.course, max_speed_m_per_s=walker.max_speed_m_per_s)


def _fixes(file: Path, vehicle: str, origin: Origin | None, seen: dict[str, None]) -> Iterator[Fix]:
    try:
        with file.open("rb") as stream:
            yield from _read_steps(stream, file, vehicle, origin, seen)
    except OSError as error:
        raise BadInput(f"the trace {file} cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise BadInput(f"{file} is no whole floating-car trace of SUMO (fcd-export): {error}") from error


def _read_steps(
    stream: IO[bytes], file: Path, vehicle: str, origin: Origin | None, seen: dict[str, None]
) -> Iterator[Fix]:
    events = ElementTree.iterparse(stream, events=("start", "end"))
    _, root = next(events)
    if root.tag != "fcd-export":
        raise BadInput(f"{file} begins with <{root.tag}>, not with <fcd-export>: make it by `sumo --fcd-output`")
    for event, element in events:
        if event == "start" or element.tag != "timestep":
            continue
        time_s = _number(element, "time", file)
        for entry in element:
            if entry.tag not in ("vehicle", "person"):
                continue
            name = entry.get("id", "")
            if len(seen) < MOST_IDS:
                seen[name] = None
            if name == vehicle:
                x, y = _number(entry, "x", file), _number(entry, "y", file)
                if origin is None:
                    yield Fix(time_s, x, y)
                else:  # with --fcd-output.geo x is the longitude
                    yield Fix(time_s, *origin.project(y, x, f"{file} at {time_s:g} s"))
        root.clear()  # what was read is not needed any more


def _number(element: ElementTree.Element, name: str, file: Path) -> float:
    text = element.get(name, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"{file}: <{element.tag}> has {name}={text!r}, which is no number")
    return value
