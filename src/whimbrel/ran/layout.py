"""The section ``[radio]`` of a topology: base stations, users' ways, path loss and handover rule, checked whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.ran.handover import HandoverRule
from whimbrel.ran.mobility import MAX_SPEED_M_PER_S, Course, Leg, Origin, Track, walk
from whimbrel.ran.pathloss import Air, PathLoss, Station


class Spot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A waypoint: `x_m` and `y_m`, or `lat` and `lon`. `speed_m_per_s`: on the way to it, default the user's."""

    x_m: float | None = None
    y_m: float | None = None
    lat: float | None = None
    lon: float | None = None
    speed_m_per_s: float | None = None
    pause_s: float = 0.0


class BaseStation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bears the name of the gateway it belongs to. What is given here takes the place of the section's `path_loss`."""

    name: str
    x_m: float | None = None
    y_m: float | None = None
    lat: float | None = None
    lon: float | None = None
    height_m: float = 0.0
    transmit_power_dbm: float | None = None
    exponent: float | None = None
    frequency_mhz: float | None = None
    reference_loss_db: float | None = None
    shadowing_db: float | None = None
    correlation_m: float | None = None
    noise_db: float | None = None
    floor_dbm: float | None = None
    sensitivity_dbm: float | None = None


class Walker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One user's way: `waypoints`, or the file `gpx`, or `vehicle` of the SUMO trace `sumo` (`geo`: the trace has
    degrees). A file's name counts from the topology's folder. `speed_m_per_s`: between waypoints; where a GPX file has
    no times, on all of it. `path_known`: handovers are forecast by it."""

    name: str
    course: Course = Course.ONCE
    speed_m_per_s: float = 1.0
    max_speed_m_per_s: float = MAX_SPEED_M_PER_S
    waypoints: tuple[Spot, ...] = ()
    gpx: str = ""
    sumo: str = ""
    vehicle: str = ""
    geo: bool = False
    path_known: bool = False


class RadioLayout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`origin` is needed where something is given in degrees. `seed`: of shadowing and measurement noise."""

    base_stations: tuple[BaseStation, ...]
    users: tuple[Walker, ...] = ()
    path_loss: PathLoss = PathLoss()
    handover: HandoverRule = HandoverRule()
    origin: Origin | None = None
    seed: int = 1

    def air(self, seed: int | None = None) -> Air:
        """What is heard where. Raises BadInput."""
        return Air([self._station(entry) for entry in self.base_stations], self.seed if seed is None else seed)

    def walker(self, name: str) -> Walker:
        """Raises BadInput for an unknown user."""
        for user in self.users:
            if user.name == name:
                return user
        known = ", ".join(user.name for user in self.users) or "none"
        raise BadInput(
            f"[radio] has no way for a user {name!r} (there is: {known}): add [[radio.users]] or give --path"
        )

    def track(self, walker: Walker) -> Track:
        """The track of a user with waypoints. Raises BadInput."""
        what = f"waypoints of {walker.name}"
        legs = []
        for number, spot in enumerate(walker.waypoints, 1):
            x_m, y_m = self._place(spot, f"{what}, number {number}")
            speed = walker.speed_m_per_s if spot.speed_m_per_s is None else spot.speed_m_per_s
            legs.append(Leg(x_m, y_m, speed, spot.pause_s))
        return walk(legs, what, course=walker.course, max_speed_m_per_s=walker.max_speed_m_per_s)

    def _station(self, entry: BaseStation) -> Station:
        x_m, y_m = self._place(entry, f"base station {entry.name}")
        own = {name: value for name in PathLoss.__struct_fields__ if (value := getattr(entry, name)) is not None}
        loss = msgspec.structs.replace(self.path_loss, **own)
        loss.check(f"base station {entry.name}")
        if not 0 <= entry.height_m <= 1000:
            raise BadInput(f"base station {entry.name}: height_m {entry.height_m:g} is not possible: use 0 to 1000")
        return Station(name=entry.name, x_m=x_m, y_m=y_m, height_m=entry.height_m, loss=loss)

    def _place(self, entry: Spot | BaseStation, what: str) -> tuple[float, float]:
        if entry.x_m is not None and entry.y_m is not None and entry.lat is None and entry.lon is None:
            if not (abs(entry.x_m) < 1e7 and abs(entry.y_m) < 1e7):  # also refuses NaN
                raise BadInput(f"{what}: {entry.x_m}, {entry.y_m} is no place: give metres from the origin")
            return entry.x_m, entry.y_m
        if entry.lat is not None and entry.lon is not None and entry.x_m is None and entry.y_m is None:
            return self.origin_for(what).project(entry.lat, entry.lon, what)
        raise BadInput(f"{what}: say where it is, either by x_m and y_m or by lat and lon")

    def origin_for(self, what: str) -> Origin:
        """Raises BadInput when there is none."""
        if self.origin is None:
            raise BadInput(f"{what} is given in degrees: say which place is (0, 0) by origin = {{ lat = …, lon = … }}")
        return self.origin


def check(layout: RadioLayout, attached: Mapping[str, Collection[str]], gateways: Collection[str]) -> RadioLayout:
    """The layout itself if it fits to a lab with these gateways, where `attached` says which gateways each user has a
    link to. Raises BadInput, naming entry and way out."""
    if not layout.base_stations:
        raise BadInput("[radio]: there is no base station: add [[radio.base_stations]]")
    layout.path_loss.check("[radio.path_loss]")
    layout.handover.check("[radio.handover]")
    if layout.seed < 0:
        raise BadInput(f"[radio]: seed {layout.seed} is not possible: use 0 or more")
    _check_unique([station.name for station in layout.base_stations], "base station")
    _check_unique([user.name for user in layout.users], "user")
    for station in layout.base_stations:
        if station.name not in gateways:
            known = ", ".join(sorted(gateways))
            raise BadInput(f"base station {station.name}: there is no gateway of that name, only {known}")
    layout.air()
    for user in layout.users:
        if user.name not in attached:
            known = ", ".join(sorted(attached)) or "none"
            raise BadInput(f"[[radio.users]]: there is no user {user.name!r} in this topology, only {known}")
        for station in layout.base_stations:
            if station.name not in attached[user.name]:
                raise BadInput(f"attached of {user.name}: base station {station.name} is missing: add it")
        _check_way(layout, user)
    return layout


def _check_way(layout: RadioLayout, user: Walker) -> None:
    ways = [name for name in ("waypoints", "gpx", "sumo") if getattr(user, name)]
    if len(ways) != 1:
        raise BadInput(f"way of {user.name}: give one of waypoints, gpx and sumo, not {' and '.join(ways) or 'none'}")
    if bool(user.sumo) != bool(user.vehicle):
        raise BadInput(f"way of {user.name}: sumo and vehicle belong together: name the trace and one vehicle in it")
    if not 0 < user.max_speed_m_per_s <= 10_000:
        raise BadInput(f"way of {user.name}: max_speed_m_per_s {user.max_speed_m_per_s:g} is not possible")
    if user.waypoints:
        layout.track(user)


def _check_unique(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"[radio]: {what} {name} is there twice: remove one")
