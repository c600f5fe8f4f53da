"""What MEC 013 knows of users and access points, and what it tells of them.

An access point is a base station, a user one that reports to the planner. Places are those that users report, in
degrees by the region's origin.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import structlog

from whimbrel.controller.mec.common import TimeStamp
from whimbrel.controller.mec.location import models as m
from whimbrel.controller.mec.location.watches import Sights, watch
from whimbrel.controller.mec.people import ACR, People, Step, degrees_of
from whimbrel.controller.mec.settings import MecConfig
from whimbrel.controller.mec.subscriptions import Subscription, Subscriptions
from whimbrel.model.errors import WhimbrelError

LOOK_EVERY_S = 0.5
REST = 4.0
"""Looks that take long are followed by so many times the pause: they never have more than a fifth of the controller."""

log = structlog.get_logger()


class Locations:
    """`step` and `node` are told what happens; `keep_looking` does the rest."""

    def __init__(self, config: MecConfig, subscriptions: Subscriptions, people: People, wifi: Iterable[str]) -> None:
        """`wifi`: the base stations that are WLAN access points."""
        self.subscriptions, self.people = subscriptions, people
        self._config, self._wifi = config, frozenset(wifi)
        self._up: dict[str, bool] = {}

    # --- queries --------------------------------------------------------------------------------------------
    def users(self, zones: Sequence[str], stations: Sequence[str], addresses: Sequence[str], url: str) -> list[Any]:
        """Of these zones, at these access points, of these names; of all where none is given."""
        named = {self.people.named(address) for address in addresses}
        found = []
        for user, state in sorted(self.people.present().items()):
            station = self.people.place(user)
            zone = self.people.zone_of(station)
            if not station or state.report is None:
                continue
            if (zones and zone not in zones) or (stations and station not in stations):
                continue
            if addresses and user not in named:
                continue
            found.append(
                m.UserInfo(
                    address=f"{ACR}{user}",
                    access_point_id=station,
                    zone_id=zone,
                    resource_url=f"{url}/queries/users?address={ACR}{user}",
                    timestamp=TimeStamp.at(state.report.unix_s),
                    location_info=self.place_of(user),
                )
            )
        return found

    def place_of(self, user: str) -> m.LocationInfo | None:
        at, report = self.people.position(user), self.people.report_of(user)
        if at is None or report is None:
            return None
        return m.LocationInfo(
            latitude=(at[0],), longitude=(at[1],), shape=m.POINT, timestamp=TimeStamp.at(report.unix_s)
        )

    def zone(self, zone: str, url: str) -> m.ZoneInfo:
        stations = self.people.stations_of(zone)
        return m.ZoneInfo(
            zone_id=zone,
            number_of_access_points=len(stations),
            number_of_unserviceable_access_points=sum(
                self.status_of(one) is m.OperationStatus.UNSERVICEABLE for one in stations
            ),
            number_of_users=self.people.count(stations),
            resource_url=f"{url}/queries/zones/{zone}",
        )

    def access_point(self, station: str, url: str) -> m.AccessPointInfo:
        place = self._config.places.get(station)
        where = degrees_of(self._config.origin, place.x_m, place.y_m) if place is not None else None
        return m.AccessPointInfo(
            access_point_id=station,
            connection_type="Wifi" if station in self._wifi else "Unknown",
            operation_status=self.status_of(station),
            number_of_users=self.people.count([station]),
            resource_url=f"{url}/queries/zones/{self.people.zone_of(station)}/accessPoints/{station}",
            location_info=m.LocationInfo(latitude=(where[0],), longitude=(where[1],), shape=m.POINT) if where else None,
        )

    def status_of(self, station: str) -> m.OperationStatus:
        """A base station serves while the agent of its gateway answers."""
        if station not in self._up:
            return m.OperationStatus.UNKNOWN
        return m.OperationStatus.SERVICEABLE if self._up[station] else m.OperationStatus.UNSERVICEABLE

    # --- what happens ---------------------------------------------------------------------------------------
    def node(self, name: str, problem: str) -> None:
        """A node's agent connected, or was lost."""
        if name in self.people.stations and self._up.get(name) != (not problem):
            self._up[name] = not problem
            self._tell_status(name)

    def step(self, step: Step) -> None:
        """A user came, went, or is at another access point."""
        for happened, station, previous in _events(step, self.people):
            for one in self.subscriptions.of_kind(m.TRACKING):
                if self.people.meant(one.value.address) == step.user:
                    self._tell_presence(one, step, happened, station, previous)
            for one in self.subscriptions.of_kind(m.TRAFFIC):
                if one.value.zone_id == self.people.zone_of(station):
                    self._tell_presence(one, step, happened, station, previous)
        for station in {step.before, step.now} - {""}:
            self._tell_crowds(station)

    def _tell_presence(
        self, one: Subscription, step: Step, happened: m.UserEventType, station: str, previous: str
    ) -> None:
        wanted = one.value.user_event_criteria
        if wanted and happened not in wanted:
            return
        message = m.ZonalPresenceNotification(
            zone_id=self.people.zone_of(station),
            address=f"{ACR}{step.user}",
            user_event_type=happened,
            current_access_point_id=station,
            previous_access_point_id=previous,
            timestamp=TimeStamp.at(step.unix_s),
            callback_data=one.value.callback_reference.callback_data,
            link=link_to(one),
        )
        self.subscriptions.notify(one, {"zonalPresenceNotification": message})

    def _tell_crowds(self, station: str) -> None:
        """Those whose threshold is met from now on, and was not before."""
        zone = self.people.zone_of(station)
        here, around = self.people.count([station]), self.people.count(self.people.stations_of(zone))
        for one in self.subscriptions.of_kind(m.STATUS):
            if one.value.zone_id != zone:
                continue
            over: dict[str, bool] = one.state if one.state is not None else {}
            one.state = over
            for key, threshold, count in (
                ("", one.value.number_of_users_zone_threshold, around),
                (station, one.value.number_of_users_ap_threshold, here),
            ):
                met = threshold is not msgspec.UNSET and count >= threshold
                if met and not over.get(key):
                    message = m.ZoneStatusNotification(
                        zone_id=zone,
                        access_point_id=key,
                        number_of_users_in_ap=count if key else msgspec.UNSET,
                        number_of_users_in_zone=msgspec.UNSET if key else count,
                        timestamp=TimeStamp.now(),
                        callback_data=one.value.callback_reference.callback_data,
                        link=link_to(one),
                    )
                    self.subscriptions.notify(one, {"zoneStatusNotification": message})
                over[key] = met

    def _tell_status(self, station: str) -> None:
        status = self.status_of(station)
        for one in self.subscriptions.of_kind(m.STATUS):
            if one.value.zone_id == self.people.zone_of(station) and status in one.value.operation_status:
                message = m.ZoneStatusNotification(
                    zone_id=one.value.zone_id,
                    access_point_id=station,
                    operation_status=status,
                    timestamp=TimeStamp.now(),
                    callback_data=one.value.callback_reference.callback_data,
                    link=link_to(one),
                )
                self.subscriptions.notify(one, {"zoneStatusNotification": message})

    async def keep_looking(self) -> None:
        """Places change all the time: who watches them is looked after here, for ever."""
        took_s = 0.0
        while True:
            await asyncio.sleep(max(LOOK_EVERY_S, REST * took_s))
            self.people.look()
            took_s = 0.0
            for one in self.subscriptions.of_kind(m.CIRCLE, m.DISTANCE, m.PERIODIC):
                if one.over:
                    continue
                began_s = time.monotonic()
                try:
                    await self._watch(one)
                except WhimbrelError as error:
                    log.warning("a location subscription cannot be ended", id=one.terms.id, error=str(error))
                took_s += time.monotonic() - began_s
                await asyncio.sleep(0)  # others have their turn between any two

    async def _watch(self, one: Subscription) -> None:
        message = watch(one, Sights(self.people, self.place_of), time.monotonic())
        if message is not None:
            message = msgspec.structs.replace(
                message, callback_data=one.value.callback_reference.callback_data, link=link_to(one)
            )
            self.subscriptions.notify(one, {"subscriptionNotification": message})
            if message.is_final_notification is True:
                one.over = True
                await self.subscriptions.remove(one.terms.id)


def link_to(one: Subscription) -> tuple[m.Link, ...]:
    return (m.Link(rel=type(one.value).__name__, href=one.terms.href),)


def _events(step: Step, people: People) -> list[tuple[m.UserEventType, str, str]]:
    """What a step is to zones: what happened, the access point it happened at, the one before."""
    zones = [people.zone_of(one) if one else "" for one in (step.before, step.now)]
    if zones[0] == zones[1]:
        return [(m.UserEventType.TRANSFERRING, step.now, step.before)]
    events = []
    if zones[0]:
        events.append((m.UserEventType.LEAVING, step.before, ""))
    if zones[1]:
        events.append((m.UserEventType.ENTERING, step.now, step.before))
    return events
