"""The resources of ``/location/v2``. Every body holds its value in a member that is named after it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from whimbrel.controller.mec.ams.routes import add_termination
from whimbrel.controller.mec.common import TimeStamp
from whimbrel.controller.mec.http import (
    PROBLEM,
    answer,
    base_url,
    caller_of,
    check_match,
    convert,
    not_found,
    nothing,
    read_json,
    router,
)
from whimbrel.controller.mec.location import models as m
from whimbrel.controller.mec.location.service import Locations
from whimbrel.controller.mec.location.watches import pairs_of
from whimbrel.controller.mec.people import distance_m
from whimbrel.controller.mec.subscriptions import Terms, new_id
from whimbrel.model.errors import BadInput

PREFIX = "/location/v2"
USUAL_DURATION_S = 24 * 3600
"""The service's policy for a subscription with a `duration` of 0."""


def location_routes(locations: Locations, url: str) -> list[APIRouter]:
    return [_query_routes(locations, url), *(_subscription_routes(locations, kind, url) for kind in m.KINDS)]


def _query_routes(locations: Locations, url: str) -> APIRouter:
    routes = router(PREFIX, PROBLEM)
    people = locations.people

    def known_zone(zone: str) -> str:
        if zone not in people.zones:
            raise not_found(f"there is no zone {zone!r}")
        return zone

    def root(request: Request) -> str:
        return f"{base_url(request, url)}{PREFIX}"

    @routes.get("/queries/users")
    async def users(request: Request) -> Response:
        zones, stations, addresses = (_list(request, name) for name in ("zoneId", "accessPointId", "address"))
        found = locations.users(zones, stations, addresses, root(request))
        return answer({"userList": {"resourceURL": f"{root(request)}/queries/users", "user": found}})

    @routes.get("/queries/zones")
    async def zones(request: Request) -> Response:
        found = [locations.zone(zone, root(request)) for zone in people.zones]
        return answer({"zoneList": {"resourceURL": f"{root(request)}/queries/zones", "zone": found}})

    @routes.get("/queries/zones/{zone}")
    async def zone(zone: str, request: Request) -> Response:
        return answer({"zoneInfo": locations.zone(known_zone(zone), root(request))})

    @routes.get("/queries/zones/{zone}/accessPoints")
    async def access_points(zone: str, request: Request) -> Response:
        realms = _list(request, "interestRealm")  # nobody said which base station has which: none has the one asked for
        stations = [] if realms else people.stations_of(known_zone(zone))
        found = [locations.access_point(station, root(request)) for station in stations]
        here = f"{root(request)}/queries/zones/{known_zone(zone)}/accessPoints"
        return answer({"accessPointList": {"accessPoint": found, "resourceURL": here, "zoneId": zone}})

    @routes.get("/queries/zones/{zone}/accessPoints/{station}")
    async def access_point(zone: str, station: str, request: Request) -> Response:
        if station not in people.stations_of(known_zone(zone)):
            raise not_found(f"there is no access point {station!r} in zone {zone}")
        return answer({"accessPointInfo": locations.access_point(station, root(request))})

    @routes.get("/queries/distance")
    async def distance(request: Request) -> Response:
        addresses = _list(request, "address")
        if not 1 <= len(addresses) <= 2:
            raise BadInput("address: name one user and a place, or two users")
        places = [position(address) for address in addresses]
        if len(places) == 1:
            places.append((_degrees(request, "latitude", 90), _degrees(request, "longitude", 180)))
        metres = round(distance_m(*places))
        return answer({"terminalDistance": m.TerminalDistance(distance=metres, timestamp=TimeStamp.now())})

    def position(address: str) -> tuple[float, float]:
        user = people.named(address)
        found = people.position(user) if user else None
        if found is None:
            raise not_found(f"no user {address!r} reports where it is")
        return found

    add_termination(routes)
    return routes


def _list(request: Request, name: str) -> list[str]:
    return [one for text in request.query_params.getlist(name) for one in text.split(",") if one]


def _degrees(request: Request, name: str, most: float) -> float:
    text = request.query_params.get(name)
    if text is None:
        raise BadInput(f"{name} is missing: one user's distance is measured from a place")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -most <= value <= most:
        raise BadInput(f"{name} {text[:40]!r} is not possible: give degrees from -{most:g} to {most:g}")
    return value


def _subscription_routes(locations: Locations, kind: m.Kind, url: str) -> APIRouter:
    path = f"{PREFIX}/subscriptions/{kind.path}"
    routes = router(path, PROBLEM)
    subscriptions = locations.subscriptions

    async def put(request: Request, subscription_id: str, *, new: bool) -> Any:
        body = await read_json(request)
        if not isinstance(body, dict) or kind.name not in body:
            raise BadInput(f"the body has no {kind.name}")
        value = convert(body[kind.name], kind.type)
        reference = value.callback_reference
        if reference.notification_format is m.NotificationFormat.XML:
            raise BadInput("notifications are JSON here: ask for notificationFormat JSON")
        if isinstance(value, m.DistanceNotificationSubscription) and pairs_of(value) > m.MOST_PAIRS:
            raise BadInput(
                f"that asks for {pairs_of(value)} distances at each look: name fewer users, of {m.MOST_PAIRS} pairs "
                "at most"
            )
        if getattr(value, "interest_realm", ()):
            raise BadInput("no base station has an interest realm: leave interestRealm out, or nothing would be told")
        if kind.path in (m.TRAFFIC, m.STATUS) and value.zone_id not in locations.people.zones:
            raise not_found(f"there is no zone {value.zone_id[:100]!r}")
        href = f"{base_url(request, url)}{path}/{subscription_id}"
        duration = getattr(value, "duration", msgspec.UNSET)
        if duration == 0:
            duration = USUAL_DURATION_S
            value = msgspec.structs.replace(value, duration=duration)
        terms = Terms(
            id=subscription_id,
            kind=kind.path,
            href=href,
            notify_url=reference.notify_url,
            expires_unix_s=time.time() + duration if isinstance(duration, int) else 0.0,
            notice=False,  # MEC 013 v2.2.1 knows no notice of an end
        )
        value = msgspec.structs.replace(value, resource_url=href)
        await subscriptions.put(terms, value, caller_of(request), new=new)
        return {kind.name: value}

    def shown(subscription_id: str, request: Request) -> Any:
        return {kind.name: subscriptions.get(subscription_id, kind.path, caller=caller_of(request)).value}

    @routes.get("")
    async def find(request: Request) -> Response:
        found = [one.value for one in subscriptions.of_kind(kind.path, caller=caller_of(request))]
        here = f"{base_url(request, url)}{path}"
        return answer({"notificationSubscriptionList": {"resourceURL": here, kind.name: found}})

    @routes.post("")
    async def subscribe(request: Request) -> Response:
        subscription_id = new_id()
        value = await put(request, subscription_id, new=True)
        return answer(value, 201, location=f"{request.url.path}/{subscription_id}", tagged=True)

    @routes.get("/{subscription_id}")
    async def show(subscription_id: str, request: Request) -> Response:
        return answer(shown(subscription_id, request), tagged=True)

    @routes.put("/{subscription_id}")
    async def change(subscription_id: str, request: Request) -> Response:
        check_match(request, shown(subscription_id, request))
        return answer(await put(request, subscription_id, new=False), tagged=True)

    @routes.delete("/{subscription_id}")
    async def remove(subscription_id: str, request: Request) -> Response:
        await subscriptions.remove(subscription_id, kind.path, caller=caller_of(request))
        return nothing()

    return routes
