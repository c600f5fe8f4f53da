"""Where a user is at a time: a track of timed places, and how tracks are made and checked.

Places are metres east and north of an origin. What a file says in degrees is projected once, when it is read.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import msgspec

from whimbrel.model.errors import BadInput

EARTH_RADIUS_M = 6_371_008.8  # mean radius of the Earth (IUGG)
MAX_SPEED_M_PER_S = 150.0  # 540 km/h: faster than any train in service; beyond it a user has jumped
MAX_REACH_M = 200_000.0  # the plane that stands for the Earth is within 0.1 % up to here
LOOP_GAP_M = 1.0
SAME_PLACE_M = 1e-3


class Fix(NamedTuple):
    """A place at a time: seconds, metres."""

    t_s: float
    x_m: float
    y_m: float


class Place(NamedTuple):
    x_m: float
    y_m: float
    speed_m_per_s: float


class Course(StrEnum):
    """What a user does at the end of its track: stands there, goes back the same way for ever (the paper's), or begins
    anew (a track that ends where it began)."""

    ONCE = "once"
    THERE_AND_BACK = "there-and-back"
    LOOP = "loop"


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The place that is (0, 0), in degrees (WGS 84)."""

    lat: float
    lon: float

    def __post_init__(self) -> None:
        _check_degrees(self.lat, self.lon, "origin")
        if abs(self.lat) > 85:
            raise BadInput(f"origin: latitude {self.lat} is too close to a pole: use one between -85 and 85")

    def project(self, lat: float, lon: float, what: str) -> tuple[float, float]:
        """Metres east and north of the origin (equirectangular). Raises BadInput, naming `what`, for degrees that are
        none and for a place farther than 200 km."""
        _check_degrees(lat, lon, what)
        east = (lon - self.lon + 180.0) % 360.0 - 180.0  # over the date line, too
        x_m = math.radians(east) * math.cos(math.radians(self.lat)) * EARTH_RADIUS_M
        y_m = math.radians(lat - self.lat) * EARTH_RADIUS_M
        if math.hypot(x_m, y_m) > MAX_REACH_M:
            raise BadInput(
                f"{what}: {lat}, {lon} is {math.hypot(x_m, y_m) / 1000:.0f} km from the origin {self.lat}, {self.lon}: "
                "set the origin near the base stations (at most 200 km away)"
            )
        return x_m, y_m


def _check_degrees(lat: float, lon: float, what: str) -> None:
    if not (-90 <= lat <= 90 and -180 <= lon <= 180):  # also false for NaN
        raise BadInput(f"{what}: {lat}, {lon} is no place: latitude is -90 to 90, longitude -180 to 180 degrees")


@dataclass(frozen=True)
class Track:
    """Fixes in the order of time, the first at 0 s. Made by `track_of` and `walk`, which check them."""

    fixes: tuple[Fix, ...]
    course: Course = Course.ONCE

    @property
    def duration_s(self) -> float:
        """From the first fix to the last; 0 for a user who stands."""
        return self.fixes[-1].t_s

    def at(self, t_s: float) -> Place:
        """Where the user is. Before 0 s it stands at the first fix; after the last one its course decides."""
        own_s, backwards = self._own_time(max(0.0, t_s))
        after = bisect_right(self.fixes, own_s, key=lambda fix: fix.t_s)
        if backwards:  # at a corner the way ahead is the one before
            after = min(after, len(self.fixes) - 1)
        if after >= len(self.fixes):
            last = self.fixes[-1]
            return Place(last.x_m, last.y_m, 0.0)
        one, two = self.fixes[after - 1], self.fixes[after]
        share = (own_s - one.t_s) / (two.t_s - one.t_s)
        across, along = two.x_m - one.x_m, two.y_m - one.y_m
        speed = math.hypot(across, along) / (two.t_s - one.t_s)
        return Place(one.x_m + share * across, one.y_m + share * along, speed)

    def _own_time(self, t_s: float) -> tuple[float, bool]:
        """The time on the track itself, and whether it is walked backwards."""
        if self.duration_s == 0:
            return 0.0, False
        if self.course is Course.LOOP:
            return t_s % self.duration_s, False
        if self.course is Course.THERE_AND_BACK:
            lap = t_s % (2 * self.duration_s)
            return (lap, False) if lap < self.duration_s else (2 * self.duration_s - lap, True)
        return t_s, False

    def is_over(self, t_s: float) -> bool:
        return self.course is Course.ONCE and t_s >= self.duration_s


def track_of(
    fixes: Iterable[Fix],
    what: str,
    *,
    course: Course = Course.ONCE,
    max_speed_m_per_s: float = MAX_SPEED_M_PER_S,
) -> Track:
    """A checked track, its clock set to begin at 0. Raises BadInput, naming `what` and the fix, for an empty one,
    NaN, time that goes back, two places at one time, and a user that jumps."""
    kept: list[Fix] = []
    for number, fix in enumerate(fixes, 1):
        if not all(map(math.isfinite, fix)):
            raise BadInput(
                f"{what}: fix {number} {tuple(fix)} has a number that is none: give time and place in s and m"
            )
        if kept and fix.t_s < kept[-1].t_s:
            raise BadInput(f"{what}: time goes back at fix {number}, from {kept[-1].t_s:g} to {fix.t_s:g} s: sort them")
        if kept and fix.t_s == kept[-1].t_s:
            if fix != kept[-1]:
                raise BadInput(f"{what}: at {fix.t_s:g} s the user is in two places (fix {number}): remove one of them")
            continue
        if kept and (speed := _speed(kept[-1], fix)) > max_speed_m_per_s:
            raise BadInput(
                f"{what}: the user jumps at fix {number}: {math.dist(kept[-1][1:], fix[1:]):.0f} m in "
                f"{fix.t_s - kept[-1].t_s:g} s is {speed:.0f} m/s, more than {max_speed_m_per_s:g}: mend the track"
            )
        kept.append(fix)
    if not kept:
        raise BadInput(f"{what}: there is no place in it: give one at least")
    if course is Course.LOOP and math.dist(kept[0][1:], kept[-1][1:]) > LOOP_GAP_M:
        raise BadInput(
            f"{what}: a loop must end where it began, but its ends are {math.dist(kept[0][1:], kept[-1][1:]):.0f} m "
            "apart: close it, or choose the course there-and-back"
        )
    begin_s = kept[0].t_s
    return Track(tuple(Fix(fix.t_s - begin_s, fix.x_m, fix.y_m) for fix in kept), course)


def _speed(one: Fix, two: Fix) -> float:
    return math.dist(one[1:], two[1:]) / (two.t_s - one.t_s)


class Leg(NamedTuple):
    """A waypoint: where, how fast one goes to it (the first one's is not used), and how long one stays."""

    x_m: float
    y_m: float
    speed_m_per_s: float
    pause_s: float = 0.0


def walk(
    legs: Sequence[Leg],
    what: str,
    *,
    course: Course = Course.ONCE,
    max_speed_m_per_s: float = MAX_SPEED_M_PER_S,
) -> Track:
    """A track along waypoints at the speeds given. Raises BadInput like `track_of`, and for a speed of 0 or less."""
    fixes: list[Fix] = []
    now_s = 0.0
    for number, leg in enumerate(legs, 1):
        if not all(map(math.isfinite, leg)):
            raise BadInput(f"{what}: waypoint {number} has a number that is none: give place and speed in m and m/s")
        if leg.pause_s < 0:
            raise BadInput(f"{what}: waypoint {number} has a pause of {leg.pause_s:g} s: use 0 or more")
        if fixes:
            distance_m = math.dist(fixes[-1][1:], leg[:2])
            if leg.speed_m_per_s <= 0 or leg.speed_m_per_s > max_speed_m_per_s:
                raise BadInput(
                    f"{what}: speed to waypoint {number} is {leg.speed_m_per_s:g} m/s: "
                    f"use more than 0 and at most {max_speed_m_per_s:g}"
                )
            if distance_m >= SAME_PLACE_M:
                now_s += distance_m / leg.speed_m_per_s
                fixes.append(Fix(now_s, leg.x_m, leg.y_m))
        else:
            fixes.append(Fix(now_s, leg.x_m, leg.y_m))
        if leg.pause_s:
            now_s += leg.pause_s
            fixes.append(fixes[-1]._replace(t_s=now_s))
    return track_of(fixes, what, course=course, max_speed_m_per_s=math.inf)  # speeds are checked
