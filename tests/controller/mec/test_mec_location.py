"""MEC 013 against a running controller: users, zones and access points, and what subscribers hear of them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from mec_server import Inbox, MecServer, check_shape, report_of

from fakes import FakeRegion
from live_controller import wait_until
from whimbrel.controller.mec.people import degrees_of, distance_m
from whimbrel.ran.mobility import Origin

SPEC = "mec013-location"
PATHS = {
    "circle": "area/circle", "distance": "distance", "periodic": "periodic", "userTracking": "userTracking",
    "zonalTraffic": "zonalTraffic", "zoneStatus": "zoneStatus",
}  # fmt: skip
NAMES = {
    kind: f"{kind}{'Notification' if kind in ('circle', 'distance', 'periodic') else ''}Subscription" for kind in PATHS
}
ORIGIN = Origin(lat=48.0, lon=16.0)


@pytest.fixture(autouse=True)
def nobody(http: httpx.Client) -> None:
    """Users of another test are gone."""
    for user in http.get("/v1/users").json():
        http.delete(f"/v1/users/{user['user']}")

    def crowd() -> int:
        zones = http.get("/location/v2/queries/zones").json()["zoneList"]["zone"]
        return sum(one["numberOfUsers"] for one in zones)

    wait_until(lambda: crowd() == 0, "nobody is there", 20)


def subscribe(http: httpx.Client, kind: str, url: str, **fields: Any) -> dict[str, Any]:
    body = {NAMES[kind]: {"callbackReference": {"notifyURL": url, "callbackData": "mine"}} | fields}
    answer = http.post(f"/location/v2/subscriptions/{PATHS[kind]}", json=body)
    assert answer.status_code == 201, answer.text
    value: dict[str, Any] = answer.json()[NAMES[kind]]
    assert value["resourceURL"].endswith(answer.headers["Location"])
    return value


def remove(http: httpx.Client, value: dict[str, Any]) -> None:
    assert http.delete(value["resourceURL"]).status_code == 204


def at(server: MecServer, user: str, station: str = "gw-1", x_m: float = 0.0, y_m: float = 0.0) -> None:
    server.tell(report_of(user, station, x_m=x_m, y_m=y_m))


# --- queries ------------------------------------------------------------------------------------------------
def test_users_are_found_by_zone_access_point_and_address(server: MecServer, http: httpx.Client) -> None:
    at(server, "ue-1", "gw-1", x_m=100.0, y_m=50.0)
    at(server, "ue-2", "gw-3")

    def found(**query: str) -> list[str]:
        listed = http.get("/location/v2/queries/users", params=query).json()
        check_shape(SPEC, "UserList", listed["userList"])
        return [one["address"] for one in listed["userList"]["user"]]

    assert found() == ["acr:ue-1", "acr:ue-2"]
    assert found(zoneId="north") == found(accessPointId="gw-1") == found(address="acr:ue-1") == ["acr:ue-1"]
    assert found(address="10.77.200.2") == ["acr:ue-2"], "also by its IP address"
    assert found(address="acr:nobody") == found(zoneId="nowhere") == []
    [one] = http.get("/location/v2/queries/users?address=ue-1").json()["userList"]["user"]
    place = one["locationInfo"]
    assert ORIGIN.project(place["latitude"][0], place["longitude"][0], "it") == pytest.approx((100.0, 50.0), abs=0.01)
    assert (one["zoneId"], one["accessPointId"]) == ("north", "gw-1")


def test_zones_and_access_points_count_their_users(server: MecServer, region: FakeRegion, http: httpx.Client) -> None:
    at(server, "ue-1", "gw-1")
    at(server, "ue-2", "gw-2")
    zones = http.get("/location/v2/queries/zones").json()["zoneList"]
    check_shape(SPEC, "ZoneList", zones)
    counts = {one["zoneId"]: (one["numberOfAccessPoints"], one["numberOfUsers"]) for one in zones["zone"]}
    assert counts == {"north": (2, 2), "south": (1, 0)}
    points = http.get("/location/v2/queries/zones/north/accessPoints").json()["accessPointList"]
    check_shape(SPEC, "AccessPointList", points)
    assert [(one["accessPointId"], one["numberOfUsers"]) for one in points["accessPoint"]] == [("gw-1", 1), ("gw-2", 1)]
    path = "/location/v2/queries/zones/north/accessPoints/gw-1"
    point = http.get(path).json()["accessPointInfo"]
    assert (point["operationStatus"], point["connectionType"]) == ("Serviceable", "Wifi")
    region.down("gw-1")
    wait_until(lambda: http.get(path).json()["accessPointInfo"]["operationStatus"] == "Unserviceable", "it is seen", 20)
    assert http.get("/location/v2/queries/zones/north").json()["zoneInfo"]["numberOfUnserviceableAccessPoints"] == 1
    region.up("gw-1")
    for unknown in ("zones/west", "zones/west/accessPoints", "zones/north/accessPoints/gw-3"):
        assert http.get(f"/location/v2/queries/{unknown}").status_code == 404
    wait_until(lambda: http.get(path).json()["accessPointInfo"]["operationStatus"] == "Serviceable", "it is back", 20)


def test_distances_are_in_metres(server: MecServer, http: httpx.Client) -> None:
    at(server, "ue-1", x_m=0.0, y_m=0.0)
    at(server, "ue-2", x_m=300.0, y_m=400.0)

    def asked(**query: Any) -> httpx.Response:
        return http.get("/location/v2/queries/distance", params=query)

    both = asked(address="acr:ue-1,acr:ue-2")
    check_shape(SPEC, "TerminalDistance", both.json()["terminalDistance"])
    assert both.json()["terminalDistance"]["distance"] == 500
    latitude, longitude = degrees_of(ORIGIN, 0.0, 1000.0)
    assert asked(address="ue-1", latitude=latitude, longitude=longitude).json()["terminalDistance"]["distance"] == 1000
    assert asked(address="nobody", latitude=1, longitude=1).status_code == 404
    for wrong in ({}, {"address": "ue-1"}, {"address": "a,b,c"}, {"address": "ue-1", "latitude": "91", "longitude": 0}):
        assert asked(**wrong).status_code == 400


def test_degrees_and_metres_agree_over_the_date_line() -> None:
    far = Origin(lat=-40.0, lon=179.999)
    here, there = degrees_of(far, 0.0, 0.0), degrees_of(far, 500.0, 0.0)
    assert there[1] < 0 < here[1]
    assert distance_m(here, there) == pytest.approx(500.0, abs=0.1)


# --- subscriptions ------------------------------------------------------------------------------------------
def presence(inbox: Inbox) -> list[tuple[str, str, str]]:
    told = [one["zonalPresenceNotification"] for one in inbox.got]
    return [(one["userEventType"], one["zoneId"], one["currentAccessPointId"]) for one in told]


def test_a_user_is_tracked_from_access_point_to_access_point(
    server: MecServer, http: httpx.Client, inbox: Inbox
) -> None:
    value = subscribe(http, "userTracking", inbox.url, address="acr:ue-1")
    for station in ("gw-1", "gw-1", "gw-2", "gw-3"):
        at(server, "ue-1", station)
    at(server, "ue-2", "gw-1")
    expected = [
        ("Entering", "north", "gw-1"),
        ("Transferring", "north", "gw-2"),
        ("Leaving", "north", "gw-2"),
        ("Entering", "south", "gw-3"),
    ]
    wait_until(lambda: len(inbox.got) >= len(expected), "the way is told", 20)
    assert presence(inbox) == expected
    check_shape(SPEC, "ZonalPresenceNotification", inbox.got[1]["zonalPresenceNotification"])
    assert inbox.got[1]["zonalPresenceNotification"]["previousAccessPointId"] == "gw-1"
    assert inbox.got[1]["zonalPresenceNotification"]["callbackData"] == "mine"
    remove(http, value)


def test_the_traffic_of_a_zone_is_told(server: MecServer, http: httpx.Client, inbox: Inbox) -> None:
    value = subscribe(http, "zonalTraffic", inbox.url, zoneId="south", userEventCriteria=["Entering"])
    at(server, "ue-1", "gw-1")
    at(server, "ue-1", "gw-3")
    at(server, "ue-1", "gw-1")
    at(server, "ue-2", "gw-3")
    wait_until(lambda: len(inbox.got) >= 2, "two users entered", 20)
    assert [one["zonalPresenceNotification"]["address"] for one in inbox.got] == ["acr:ue-1", "acr:ue-2"]
    assert {what for what, *_ in presence(inbox)} == {"Entering"}
    remove(http, value)


def test_a_crowded_zone_and_a_lost_access_point_are_told(
    server: MecServer, region: FakeRegion, http: httpx.Client, inbox: Inbox
) -> None:
    value = subscribe(
        http, "zoneStatus", inbox.url, zoneId="north", numberOfUsersZoneThreshold=2, operationStatus=["Unserviceable"]
    )
    at(server, "ue-1", "gw-1")
    at(server, "ue-2", "gw-2")
    crowded = inbox.wait(lambda one: True, "the zone is crowded")["zoneStatusNotification"]
    check_shape(SPEC, "ZoneStatusNotification", crowded)
    assert crowded["numberOfUsersInZone"] == 2
    region.down("gw-2")
    inbox.wait(lambda one: one["zoneStatusNotification"].get("operationStatus") == "Unserviceable", "the loss is told")
    assert inbox.got[-1]["zoneStatusNotification"]["accessPointId"] == "gw-2"
    region.up("gw-2")
    remove(http, value)


def test_a_circle_is_watched(server: MecServer, http: httpx.Client, inbox: Inbox) -> None:
    latitude, longitude = degrees_of(ORIGIN, 1000.0, 0.0)
    at(server, "ue-1", x_m=1000.0)
    value = subscribe(
        http, "circle", inbox.url, address=["acr:ue-1"], latitude=latitude, longitude=longitude, radius=100.0,
        trackingAccuracy=10.0, enteringLeavingCriteria="Entering", checkImmediate=True, frequency=0, count=1,
    )  # fmt: skip
    told = inbox.wait(lambda one: True, "the user is inside")["subscriptionNotification"]
    check_shape(SPEC, "SubscriptionNotification", told)
    assert told["terminalLocation"][0]["address"] == "acr:ue-1"
    assert told["enteringLeavingCriteria"] == "Entering"
    assert told["isFinalNotification"] is True
    wait_until(lambda: http.get(value["resourceURL"]).status_code == 404, "it was to be told once", 20)


def test_distances_between_users_are_watched(server: MecServer, http: httpx.Client, inbox: Inbox) -> None:
    at(server, "ue-1", x_m=0.0)
    at(server, "ue-2", x_m=50.0)
    value = subscribe(
        http, "distance", inbox.url, monitoredAddress=["acr:ue-1"], referenceAddress=["acr:ue-2"], distance=100.0,
        trackingAccuracy=10.0, criteria="AllWithinDistance", checkImmediate=True, frequency=0,
    )  # fmt: skip
    told = inbox.wait(lambda one: True, "they are near")["subscriptionNotification"]
    assert told["distanceCriteria"] == "AllWithinDistance"
    remove(http, value)


def test_places_are_told_regularly(server: MecServer, http: httpx.Client, inbox: Inbox) -> None:
    at(server, "ue-1", x_m=10.0)
    value = subscribe(
        http, "periodic", inbox.url, address=["acr:ue-1", "acr:nobody"], frequency=1, requestedAccuracy=10
    )
    wait_until(lambda: len(inbox.got) >= 2, "it is told again and again", 20)
    [here, nobody] = inbox.got[0]["subscriptionNotification"]["terminalLocation"]
    assert here["locationRetrievalStatus"] == "Retrieved"
    assert nobody["locationRetrievalStatus"] == "NotRetrieved"
    assert here["currentLocation"]["shape"] == 2
    remove(http, value)


@pytest.mark.parametrize("kind", ["zonalTraffic", "userTracking"])
def test_subscriptions_are_listed_shown_and_changed(http: httpx.Client, inbox: Inbox, kind: str) -> None:
    fields = {"zoneId": "north"} if kind == "zonalTraffic" else {"address": "acr:ue-1"}
    value = subscribe(http, kind, inbox.url, **fields)
    listed = http.get(f"/location/v2/subscriptions/{PATHS[kind]}").json()["notificationSubscriptionList"]
    check_shape(SPEC, "NotificationSubscriptionList", listed)
    assert listed[NAMES[kind]] == [value]
    shown = http.get(value["resourceURL"])
    assert shown.json() == {NAMES[kind]: value}
    changed = {NAMES[kind]: value | {"clientCorrelator": "x"}}
    assert http.put(value["resourceURL"], json=changed, headers={"If-Match": shown.headers["ETag"]}).json() == changed
    assert http.put(value["resourceURL"], json=changed, headers={"If-Match": shown.headers["ETag"]}).status_code == 412
    other = value["resourceURL"].replace(PATHS[kind], "zoneStatus")
    assert http.get(other).status_code == 404, "it is of another kind"
    remove(http, value)


def test_a_subscription_with_a_duration_ends(http: httpx.Client, inbox: Inbox) -> None:
    value = subscribe(http, "zonalTraffic", inbox.url, zoneId="north", duration=1)
    wait_until(lambda: http.get(value["resourceURL"]).status_code == 404, "it ends", 20)
    assert inbox.got == []


@pytest.mark.parametrize(
    ("kind", "fields", "status"),
    [
        ("zonalTraffic", {"zoneId": "nowhere"}, 404),
        ("zonalTraffic", {}, 400),
        ("zonalTraffic", {"zoneId": "north", "callbackReference": {"notifyURL": "http://192.0.2.1/"}}, 403),
        ("userTracking", {"address": "a", "callbackReference": {"notifyURL": "x", "notificationFormat": "XML"}}, 400),
        ("circle", {"address": [], "latitude": 1, "longitude": 1, "radius": 1}, 400),
    ],
)
def test_a_subscription_that_cannot_be_meant_is_a_problem(
    http: httpx.Client, inbox: Inbox, kind: str, fields: dict[str, Any], status: int
) -> None:
    body = {NAMES[kind]: {"callbackReference": {"notifyURL": inbox.url}} | fields}
    answer = http.post(f"/location/v2/subscriptions/{PATHS[kind]}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    check_shape(SPEC, "ProblemDetails", answer.json())
