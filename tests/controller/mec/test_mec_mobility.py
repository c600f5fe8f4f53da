"""MEC 021 against a running controller: registrations, subscriptions, and what real migration records make of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from mec_server import Inbox, MecServer, check_shape, report_of, serving
from websockets.sync.client import connect

from fakes import FakeRegion
from live_controller import wait_until
from whimbrel.model.errors import Refused

SPEC = "mec021-ams"
TRIGGERED, COMPLETED, FAILED = (f"INTERHOST_MOVEOUT_{what}" for what in ("TRIGGERED", "COMPLETED", "FAILED"))
ALL = {"mobilityStatus": [TRIGGERED, COMPLETED, FAILED]}
DEVICE = {"associateId": {"type": "UE_IPv4_ADDRESS", "value": "10.77.9.9"}}


def register(http: httpx.Client, instance: str, **fields: Any) -> httpx.Response:
    body = {"serviceConsumerId": {"appInstanceId": instance}, "deviceInformation": [DEVICE]} | fields
    return http.post("/amsi/v1/app_mobility_services", json=body)


def subscribe(http: httpx.Client, callback: str = "", kind: str = "MobilityProcedure", **fields: Any) -> dict[str, Any]:
    body = {"subscriptionType": f"{kind}Subscription", "filterCriteria": {}} | fields
    answer = http.post("/amsi/v1/subscriptions", json=body | ({"callbackReference": callback} if callback else {}))
    assert answer.status_code == 201, answer.text
    value: dict[str, Any] = answer.json()
    assert value["_links"]["self"]["href"].endswith(answer.headers["Location"])
    return value


def remove(http: httpx.Client, value: dict[str, Any]) -> None:
    assert http.delete(value["_links"]["self"]["href"]).status_code == 204


def statuses(inbox: Inbox) -> list[str]:
    return [one["mobilityStatus"] for one in inbox.got if one["notificationType"] == "MobilityProcedureNotification"]


# --- registrations ------------------------------------------------------------------------------------------
def test_a_registration_is_kept_shown_changed_and_removed(http: httpx.Client) -> None:
    made = register(http, "video", appMobilityServiceId="the-clients-own")
    assert made.status_code == 201
    assert made.json()["appMobilityServiceId"] == "the-clients-own", "what a client names is echoed"
    assert made.headers["Location"] == "/amsi/v1/app_mobility_services/the-clients-own"
    assert register(http, "video", appMobilityServiceId="the-clients-own").status_code == 403
    shown = http.get(made.headers["Location"])
    assert shown.json() == made.json()
    assert shown.headers["ETag"] == made.headers["ETag"]
    changed = made.json() | {"deviceInformation": []}
    stale = http.put(made.headers["Location"], json=changed, headers={"If-Match": '"another"'})
    assert stale.status_code == 412
    assert http.put(made.headers["Location"], json=changed, headers={"If-Match": shown.headers["ETag"]}).is_success
    again = http.put(made.headers["Location"], json=changed, headers={"If-Match": shown.headers["ETag"]})
    assert again.status_code == 412, "it was changed since"
    other = http.put(made.headers["Location"], json=changed | {"appMobilityServiceId": "x"})
    assert other.status_code == 422
    assert http.delete(made.headers["Location"]).status_code == 204
    assert http.get(made.headers["Location"]).status_code == 404


@pytest.mark.parametrize("task", ["deregister_task", "deregisterTask"])
def test_both_names_of_the_task_deregister(http: httpx.Client, task: str) -> None:
    location = register(http, "video").headers["Location"]
    assert http.post(f"{location}/{task}").status_code == 204
    assert http.post(f"{location}/{task}").status_code == 404
    assert http.get(location).status_code == 404


def test_integers_of_the_earlier_version_are_read_as_words(http: httpx.Client) -> None:
    device = {"associateId": {"type": 1, "value": "10.0.0.1"}, "appMobilityServiceLevel": 3, "contextTransferState": 0}
    made = register(http, "video", deviceInformation=[device])
    assert made.status_code == 201
    assert made.json()["deviceInformation"] == [
        {
            "associateId": {"type": "UE_IPv4_ADDRESS", "value": "10.0.0.1"},
            "appMobilityServiceLevel": "APP_MOBILITY_WITHOUT_CONFIRMATION",
            "contextTransferState": "NOT_TRANSFERRED",
        }
    ]
    check_shape(SPEC, "RegistrationInfo", made.json())
    http.delete(made.headers["Location"])
    assert register(http, "video", deviceInformation=[{"associateId": {"type": 9}}]).status_code == 400


def test_registrations_are_filtered_and_selected(http: httpx.Client) -> None:
    one, two = (register(http, name).headers["Location"] for name in ("red", "blue"))
    found = http.get("/amsi/v1/app_mobility_services", params={"filter": "(eq,serviceConsumerId/appInstanceId,blue)"})
    assert [each["serviceConsumerId"]["appInstanceId"] for each in found.json()] == ["blue"]
    lean = http.get("/amsi/v1/app_mobility_services?exclude_default").json()
    assert all("deviceInformation" not in each for each in lean)
    assert http.get("/amsi/v1/app_mobility_services?fields=x").status_code == 400
    for location in (one, two):
        http.delete(location)


def test_a_registration_ends_by_itself(http: httpx.Client) -> None:
    location = register(http, "video", expiryTime=1).headers["Location"]
    assert http.get(location).status_code == 200
    wait_until(lambda: http.get(location).status_code == 404, "the registration ends", 20)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"serviceConsumerId":{}}', 400),
        (b'{"serviceConsumerId":{"appInstanceId":7}}', 400),
        (b'{"serviceConsumerId":{"appInstanceId":"a"},"expiryTime":-1}', 400),
        (b'{"serviceConsumerId":{"appInstanceId":"a"},"appMobilityServiceId":"../x"}', 400),
        (b'{"serviceConsumerId":{"appInstanceId":"' + b"a" * 300_000 + b'"}}', 413),
    ],
)
def test_a_body_that_cannot_be_meant_is_a_problem(http: httpx.Client, body: bytes, status: int) -> None:
    answer = http.post("/amsi/v1/app_mobility_services", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    check_shape(SPEC, "ProblemDetails", answer.json())
    assert answer.json()["status"] == status


def test_formats_that_nobody_speaks_are_refused(http: httpx.Client) -> None:
    xml = {"Content-Type": "application/xml"}
    assert http.post("/amsi/v1/subscriptions", content=b"<x/>", headers=xml).status_code == 415
    assert http.get("/amsi/v1/app_mobility_services", headers={"Accept": "text/html"}).status_code == 406


def test_a_path_or_a_method_that_is_not_there_is_a_problem_of_the_files_type(http: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/amsi/v1/nowhere", 404), ("PATCH", "/amsi/v1/subscriptions", 405), ("GET", "/amsi", 404),
        ("HEAD", "/amsi/v1/subscriptions", 405),
    ):  # fmt: skip
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
        if method != "HEAD":
            check_shape(SPEC, "ProblemDetails", answer.json())
    assert http.get("/rni/v2/nowhere").headers["content-type"] == "application/problem+json"


# --- notifications of migrations ----------------------------------------------------------------------------
def test_a_migration_is_told_when_it_starts_and_when_it_is_done(
    server: MecServer, region: FakeRegion, http: httpx.Client, inbox: Inbox
) -> None:
    server.run("counter", "edge-1")
    registration = register(http, "counter").headers["Location"]
    subscription = subscribe(http, inbox.url, filterCriteria=ALL | {"appInstanceId": "counter"})
    other = subscribe(http, f"{inbox.url}/other", filterCriteria=ALL | {"appInstanceId": "another"})
    region.go.clear()
    assert server.migrate("counter", "edge-2").status_code == 202
    begun = inbox.wait(lambda one: one.get("mobilityStatus") == TRIGGERED, "the start is told")
    assert statuses(inbox) == [TRIGGERED], "nothing more while it runs"
    region.go.set()
    done = inbox.wait(lambda one: one.get("mobilityStatus") == COMPLETED, "the end is told")
    for message in (begun, done):
        check_shape(SPEC, "MobilityProcedureNotification", message)
        assert message["_links"]["subscription"]["href"] == subscription["_links"]["self"]["href"]
        assert message["associateId"] == [DEVICE["associateId"]], "whom the application registered"
        assert message["targetAppInfo"]["appInstanceId"] == "counter"
        [place] = message["targetAppInfo"]["commInterface"]["ipAddresses"]
        assert place == {"host": region.agents["edge-2"].services["counter"].spec.address.split("/")[0], "port": 80}
    assert set(inbox.paths) == {"/"}
    for each in (subscription, other):
        remove(http, each)
    http.delete(registration)


def test_a_migration_that_comes_to_nothing_is_told_as_failed_and_a_dry_run_not_at_all(
    server: MecServer, region: FakeRegion, http: httpx.Client, inbox: Inbox
) -> None:
    server.run("counter", "edge-1")
    subscription = subscribe(http, inbox.url, filterCriteria=ALL)
    assert server.migrate("counter", "edge-2", dry_run=True).status_code == 202
    region.go.clear()

    def started() -> Any:
        answer = server.migrate("counter", "edge-2")
        return answer.json()["id"] if answer.status_code == 202 else None  # the dry run may not be over yet

    wait_until(started, "a migration starts")
    inbox.wait(lambda one: one.get("mobilityStatus") == TRIGGERED, "the start is told")
    [record] = [one for one in http.get("/v1/migrations").json() if one["outcome"] == "running"]
    assert http.post(f"/v1/migrations/{record['id']}/cancel").status_code == 202
    inbox.wait(lambda one: one.get("mobilityStatus") == FAILED, "the failure is told")
    assert statuses(inbox) == [TRIGGERED, FAILED]
    for message in inbox.got:
        check_shape(SPEC, "MobilityProcedureNotification", message)
        assert message["associateId"] == [], "it is told also where nobody knows the service's users"
    region.agents["edge-1"].refuse_migration = Refused("there is no room")
    assert server.migrate("counter", "edge-2").status_code == 202
    wait_until(lambda: statuses(inbox) == [TRIGGERED, FAILED] * 2, "a refusal is a failure, too", 20)
    remove(http, subscription)


def test_only_what_a_filter_asks_for_is_told(
    server: MecServer, region: FakeRegion, http: httpx.Client, inbox: Inbox
) -> None:
    server.run("counter", "edge-1")
    registration = register(http, "counter").headers["Location"]
    criteria = {
        "ends": {"mobilityStatus": [2]},
        "usual": {},
        "user": ALL | {"associateId": [DEVICE["associateId"]]},
        "stranger": ALL | {"associateId": [{"type": "UE_IPv4_ADDRESS", "value": "10.0.0.7"}]},
    }
    made = [subscribe(http, f"{inbox.url}/{name}", filterCriteria=each) for name, each in criteria.items()]
    assert made[0]["filterCriteria"]["mobilityStatus"] == [COMPLETED]
    assert made[1]["filterCriteria"] == {"mobilityStatus": [TRIGGERED]}, "what is meant where nothing is said"
    assert http.get(made[1]["_links"]["self"]["href"]).json() == made[1]
    server.migrate("counter", "edge-2")
    wait_until(lambda: inbox.paths.count("/user") == 2 and {"/ends", "/usual"} <= set(inbox.paths), "all are told", 20)
    told = sorted((path, one["mobilityStatus"]) for path, one in zip(inbox.paths, inbox.got, strict=True))
    assert told == [("/ends", COMPLETED), ("/user", COMPLETED), ("/user", TRIGGERED), ("/usual", TRIGGERED)]
    for each in made:
        remove(http, each)
    http.delete(registration)


def test_users_of_the_planner_are_named_by_their_addresses(
    server: MecServer, region: FakeRegion, http: httpx.Client, inbox: Inbox
) -> None:
    """Nobody registered them: the controller knows whom the service was deployed for."""
    http.post("/v1/applications", json={"name": "app", "image": "oci:/x", "ports": ["80/tcp"]})
    server.tell(report_of("ue-1"))
    http.put("/v1/planner", json={"paused": True})
    found = http.post("/v1/users/ue-1/discovery", json={"application": "app"})
    assert found.status_code == 201, found.text
    session = found.json()
    subscription = subscribe(http, inbox.url, filterCriteria=ALL)
    target = next(name for name in ("edge-1", "edge-2") if name != session["server"])
    assert server.migrate(session["service"], target).status_code == 202
    done = inbox.wait(lambda one: one.get("mobilityStatus") == COMPLETED, "the end is told")
    assert done["associateId"] == [{"type": "UE_IPv4_ADDRESS", "value": "10.77.200.1"}]
    remove(http, subscription)
    http.delete("/v1/users/ue-1")


def test_an_application_that_must_not_be_moved_stays(server: MecServer, region: FakeRegion, http: httpx.Client) -> None:
    server.run("counter", "edge-1")
    fixed = [DEVICE | {"appMobilityServiceLevel": "APP_MOBILITY_NOT_ALLOWED"}]
    registration = register(http, "counter", deviceInformation=fixed).headers["Location"]
    refused = server.migrate("counter", "edge-2")
    assert refused.status_code == 422
    assert "APP_MOBILITY_NOT_ALLOWED" in refused.json()["detail"]
    assert not region.agents["edge-1"].requests, "no agent heard of it"
    http.delete(registration)
    assert server.migrate("counter", "edge-2").status_code == 202


# --- subscriptions ------------------------------------------------------------------------------------------
def test_subscriptions_are_listed_by_kind(http: httpx.Client, inbox: Inbox) -> None:
    mobility, adjacent = subscribe(http, inbox.url), subscribe(http, inbox.url, "AdjacentAppInfo")
    for asked, value in (("mobility_proc", mobility), ("adj_app_info", adjacent)):
        found = http.get("/amsi/v1/subscriptions", params={"subscriptionType": asked}).json()
        check_shape(SPEC, "SubscriptionLinkList", found)
        expected = {"href": value["_links"]["self"]["href"], "subscriptionType": value["subscriptionType"]}
        assert found["_links"]["subscription"] == [expected]
    assert http.get("/amsi/v1/subscriptions").status_code == 400
    assert http.get("/amsi/v1/subscriptions?subscriptionType=x").status_code == 400
    for each in (mobility, adjacent):
        remove(http, each)


def test_a_subscription_is_changed_only_as_it_was_read(http: httpx.Client, inbox: Inbox) -> None:
    value = subscribe(http, inbox.url)
    href = value["_links"]["self"]["href"]
    tag = http.get(href).headers["ETag"]
    changed = value | {"filterCriteria": {"appInstanceId": "x", "mobilityStatus": [FAILED]}}
    assert http.put(href, json=changed, headers={"If-Match": tag}).json() == changed
    assert http.put(href, json=changed, headers={"If-Match": tag}).status_code == 412
    remove(http, value)
    assert http.put(href, json=changed).status_code == 404


def test_a_test_notification_is_sent_when_asked_for(http: httpx.Client, inbox: Inbox) -> None:
    value = subscribe(http, inbox.url, requestTestNotification=True)
    test = inbox.wait(lambda one: one["notificationType"] == "TestNotification", "the test notification")
    check_shape(SPEC, "TestNotification", test)
    assert test["_links"]["subscription"] == value["_links"]["self"]
    remove(http, value)


def test_a_subscription_ends_at_its_deadline_and_says_so_ahead(http: httpx.Client, inbox: Inbox) -> None:
    deadline = {"seconds": int(time.time()) + 3, "nanoSeconds": 0}
    value = subscribe(http, inbox.url, expiryDeadline=deadline)
    notice = inbox.wait(lambda one: one["notificationType"] == "ExpiryNotification", "the notice")
    check_shape(SPEC, "ExpiryNotification", notice)
    assert notice["expiryDeadline"] == deadline
    href = value["_links"]["self"]["href"]
    wait_until(lambda: http.get(href).status_code == 404, "the subscription ends", 20)
    past = {"subscriptionType": "MobilityProcedureSubscription", "filterCriteria": {}, "callbackReference": inbox.url}
    late = http.post("/amsi/v1/subscriptions", json=past | {"expiryDeadline": {"seconds": 1, "nanoSeconds": 0}})
    assert late.status_code == 400


def test_a_callback_that_the_operator_did_not_allow_is_forbidden(http: httpx.Client) -> None:
    body = {"subscriptionType": "MobilityProcedureSubscription", "filterCriteria": {}}
    for url in (
        "http://192.0.2.7/",
        "http://169.254.169.254/latest",
        "http://0/",
        "http://0x0a000001/",
        "http://a..b/",
    ):
        answer = http.post("/amsi/v1/subscriptions", json=body | {"callbackReference": url})
        assert answer.status_code == 403
        assert "[mec] callbacks" in answer.json()["detail"]
    for url in ("http://10.0.0.1%00.127.0.0.1/", "http://\u217027.0.0.1/"):
        assert http.post("/amsi/v1/subscriptions", json=body | {"callbackReference": url}).status_code == 400
    assert http.post("/amsi/v1/subscriptions", json=body).status_code == 400, "nothing could ever be sent"


def test_notifications_come_by_websocket(server: MecServer, region: FakeRegion, http: httpx.Client) -> None:
    server.run("counter", "edge-1")
    value = subscribe(http, filterCriteria=ALL, websockNotifConfig={"requestWebsocketUri": True})
    with connect(value["websockNotifConfig"]["websocketUri"], proxy=None) as socket:
        server.migrate("counter", "edge-2")
        told = [json.loads(socket.recv(timeout=20))["mobilityStatus"] for _ in range(2)]
    assert told == [TRIGGERED, COMPLETED]
    remove(http, value)
    with pytest.raises(Exception, match="403"), connect(value["websockNotifConfig"]["websocketUri"], proxy=None):
        pass


def test_other_instances_of_an_application_are_found_and_told(
    server: MecServer, region: FakeRegion, http: httpx.Client, inbox: Inbox
) -> None:
    server.run("app-a", "edge-1")
    registration = register(http, "app-a").headers["Location"]
    value = subscribe(http, inbox.url, "AdjacentAppInfo", filterCriteria={"appInstanceId": "app-a"})
    assert http.get("/amsi/v1/queries/adjacent_app_instances").json() == []
    server.run("app-b", "edge-2")
    [found] = http.get("/amsi/v1/queries/adjacent_app_instances").json()
    check_shape(SPEC, "AdjacentAppInstanceInfo", found)
    assert (found["appInstanceId"], found["registeredInstanceId"]) == ("app-b", "app-a")
    assert found["mecHostInformation"]["hostName"] == "edge-2"
    lean = http.get("/amsi/v1/queries/adjacent_app_instances?exclude_default&filter=(eq,appInstanceId,app-b)").json()
    assert "mecHostInformation" not in lean[0]
    told = inbox.wait(lambda one: one["notificationType"] == "AdjacentAppInfoNotification", "the neighbour is told")
    check_shape(SPEC, "AdjacentAppInfoNotification", told)
    assert told["adjacentAppInfo"]["appInstanceId"] == "app-b"
    remove(http, value)
    http.delete(registration)


def test_what_was_registered_and_subscribed_survives_a_restart(tmp_path: Path, inbox: Inbox) -> None:
    with serving(tmp_path) as server:
        with server.http() as http:
            registration = register(http, "counter").headers["Location"]
            value = subscribe(http, inbox.url, filterCriteria=ALL)
        server.kill()
        server.start()
        server.run("counter", "edge-1")
        with server.http() as http:
            assert http.get(registration).status_code == 200
            assert http.get(value["_links"]["self"]["href"]).json() == value
        server.migrate("counter", "edge-2")
        inbox.wait(lambda one: one.get("mobilityStatus") == COMPLETED, "it is told by the next controller")
