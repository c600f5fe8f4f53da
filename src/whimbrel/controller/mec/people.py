"""Users, cells and zones under the names that the specifications use for them."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from whimbrel.controller.mec.settings import MecConfig
from whimbrel.controller.planning.users import VANISHED_S, Users, UserState
from whimbrel.model.radio import UserEvent, UserReport
from whimbrel.ran.mobility import EARTH_RADIUS_M, Origin

ACR = "acr:"
M_PER_DEGREE = math.radians(EARTH_RADIUS_M)
"""Of latitude."""


@dataclass(frozen=True)
class Step:
    """A user is at another base station than before; "" for none."""

    user: str
    before: str
    now: str
    unix_s: float


class People:
    """`steps` are told to `listeners`, in the event loop."""

    def __init__(self, config: MecConfig, users: Users) -> None:
        self._config, self._users = config, users
        self._addresses = {address: user for user, address in config.users.items()}
        self._stations = {cell: name for name, cell in config.cells.items()}
        self._at: dict[str, str] = {}
        self.listeners: list[Callable[[Step], None]] = []

    @property
    def stations(self) -> tuple[str, ...]:
        return tuple(self._config.cells)

    @property
    def zones(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._config.zones.values()))

    def zone_of(self, station: str) -> str:
        return self._config.zones.get(station, station)

    def stations_of(self, zone: str) -> list[str]:
        return [name for name, its in self._config.zones.items() if its == zone]

    def cell_of(self, station: str) -> str:
        return self._config.cells.get(station, "")

    def station_of(self, cell: str) -> str:
        return self._stations.get(cell.lower(), "")

    # --- users ----------------------------------------------------------------------------------------------
    def present(self) -> dict[str, UserState]:
        """Those who reported lately."""
        return self._users.present()

    def address_of(self, user: str) -> str:
        """The IP address that applications know the user by; "" when nobody said it."""
        return self._config.users.get(user, "")

    def user_of(self, address: str) -> str:
        """Who has an IP address; "" for nobody."""
        try:
            return self._addresses.get(str(ipaddress.ip_address(address)), "")
        except ValueError:
            return ""

    def meant(self, text: str) -> str:
        """The name of the user that a consumer means by ``acr:NAME``, a name or an IP address, there or not."""
        bare = text.removeprefix(ACR)
        return self.user_of(bare) or bare

    def named(self, text: str) -> str:
        """The same for one who is there; "" for any other."""
        user = self.meant(text)
        return user if self.report_of(user) is not None else ""

    def report_of(self, user: str) -> UserReport | None:
        """What the user told last, as far as it is believed; None for one who is not there."""
        state = self._users.get(user)
        if state is None or time.monotonic() - state.heard_s > VANISHED_S:
            return None
        return state.report

    # --- where they are -------------------------------------------------------------------------------------
    def hear(self, event: UserEvent) -> None:
        if isinstance(event, UserReport):
            self._step(event.user, event.serving if event.serving in self._config.cells else "")

    def look(self) -> None:
        """Who reports no longer is nowhere."""
        there = self.present()
        for user in [user for user, at in self._at.items() if at and user not in there]:
            self._step(user, "")

    def at(self, station: str) -> list[str]:
        return [user for user, at in self._at.items() if at == station]

    def place(self, user: str) -> str:
        """The base station that serves the user; "" for none."""
        return self._at.get(user, "")

    def count(self, stations: Iterable[str]) -> int:
        wanted = set(stations)
        return sum(at in wanted for at in self._at.values())

    def _step(self, user: str, now: str) -> None:
        before = self._at.get(user, "")
        if now:
            self._at[user] = now
        else:
            self._at.pop(user, None)
        if before != now:
            step = Step(user=user, before=before, now=now, unix_s=time.time())
            for listener in self.listeners:
                listener(step)

    # --- positions ------------------------------------------------------------------------------------------
    def position(self, user: str) -> tuple[float, float] | None:
        """Latitude and longitude; None for who is not there, or does not know."""
        report = self.report_of(user)
        if report is None or not math.isfinite(report.x_m + report.y_m):
            return None
        return degrees_of(self._config.origin, report.x_m, report.y_m)


def degrees_of(origin: Origin, x_m: float, y_m: float) -> tuple[float, float]:
    """Of a place in the region's plane: x is east of the origin, y north (what `Origin.project` undoes)."""
    latitude = origin.lat + y_m / M_PER_DEGREE
    longitude = origin.lon + x_m / (M_PER_DEGREE * math.cos(math.radians(origin.lat)))
    return max(-90.0, min(90.0, latitude)), (longitude + 180) % 360 - 180


def distance_m(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Between two places in degrees, in the plane that touches the earth between them: exact to a few metres within
    tens of kilometres, as regions are."""
    north = (a[0] - b[0]) * M_PER_DEGREE
    turn = (a[1] - b[1] + 180) % 360 - 180
    east = turn * M_PER_DEGREE * math.cos(math.radians((a[0] + b[0]) / 2))
    return math.hypot(north, east)
