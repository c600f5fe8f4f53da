"""MEC 012 against a running controller: what users report of the radio, as its consumers see it; and a controller that
consumes it: the handover port `mec012`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from mec_server import MEC, Inbox, MecServer, check_shape, handover_of, report_of, serving
from websockets.sync.client import connect

from fakes import FakeRegion
from live_controller import wait_until
from whimbrel.controller.access import TokenRole, config_line
from whimbrel.controller.handovers import port_of
from whimbrel.controller.handovers.mec012 import USUAL_INTERRUPTION_MS, Mec012
from whimbrel.controller.mec.rni.models import dbm_of, rsrp_of, rsrq_of
from whimbrel.model.errors import BadInput
from whimbrel.model.radio import HandoverOrder, HandoverRecord, UserEvent, UserReport

SPEC = "mec012-rnis"
UE_1, UE_2 = ({"type": 1, "value": f"10.77.200.{number}"} for number in (1, 2))


def ecgi(cell: str) -> dict[str, Any]:
    return {"cellId": cell, "plmn": {"mcc": "001", "mnc": "01"}}


def subscribe(http: httpx.Client, kind: str, **fields: Any) -> dict[str, Any]:
    name = {"CellChange": "filterCriteriaAssocHo", "MeasRepUe": "filterCriteriaAssocTri"}[kind]
    answer = http.post("/rni/v2/subscriptions", json={"subscriptionType": f"{kind}Subscription", name: {}} | fields)
    assert answer.status_code == 201, answer.text
    value: dict[str, Any] = answer.json()
    return value


def remove(http: httpx.Client, value: dict[str, Any]) -> None:
    assert http.delete(value["_links"]["self"]["href"]).status_code == 204


def test_a_handover_is_told_to_who_subscribed(server: MecServer, http: httpx.Client, inbox: Inbox) -> None:
    value = subscribe(http, "CellChange", callbackReference=inbox.url)
    assert value["filterCriteriaAssocHo"]["hoStatus"] == [3], "COMPLETED is meant where nothing is said"
    server.tell(handover_of("ue-1", "gw-1", "gw-2", error="refused"))
    server.tell(handover_of("ue-1", "", "gw-2"))
    server.tell(handover_of("ue-1", "gw-1", "gw-2"))
    told = inbox.wait(lambda one: True, "the handover is told")
    check_shape(SPEC, "CellChangeNotification", told)
    assert told["associateId"] == [UE_1]
    assert (told["srcEcgi"], told["trgEcgi"]) == (ecgi("0000001"), [ecgi("0000002")])
    assert (told["hoStatus"], len(inbox.got)) == (3, 1)
    remove(http, value)


@pytest.mark.parametrize(
    ("criteria", "told"),
    [
        ({"associateId": [UE_2]}, ["ue-2"]),
        ({"ecgi": [ecgi("0000003")]}, ["ue-2"]),
        ({"ecgi": [ecgi("0000001")]}, ["ue-1"]),
        ({"hoStatus": [4]}, ["ue-3"]),
        ({"hoStatus": [3, 4]}, ["ue-1", "ue-2", "ue-3"]),
        ({"ecgi": [ecgi("0000001") | {"plmn": {"mcc": "999", "mnc": "99"}}]}, []),
    ],
)
def test_only_the_handovers_that_are_meant_are_told(
    server: MecServer, http: httpx.Client, inbox: Inbox, criteria: dict[str, Any], told: list[str]
) -> None:
    value = subscribe(http, "CellChange", callbackReference=f"{inbox.url}/a", filterCriteriaAssocHo=criteria)
    last = subscribe(http, "CellChange", callbackReference=f"{inbox.url}/last", filterCriteriaAssocHo={"hoStatus": [3]})
    server.tell(handover_of("ue-1", "gw-1", "gw-2"))
    server.tell(handover_of("ue-2", "gw-2", "gw-3"))
    server.tell(handover_of("ue-3", "gw-2", "gw-3", error="no room"))
    wait_until(lambda: inbox.paths.count("/last") == 2 and inbox.paths.count("/a") >= len(told), "all are told", 20)
    names = {UE_1["value"]: "ue-1", UE_2["value"]: "ue-2", "": "ue-3"}
    got = [one for path, one in zip(inbox.paths, inbox.got, strict=True) if path == "/a"]
    assert [names[one.get("associateId", [{"value": ""}])[0]["value"]] for one in got] == told
    for each in (value, last):
        remove(http, each)


def test_what_a_user_measures_is_told(server: MecServer, http: httpx.Client, inbox: Inbox) -> None:
    value = subscribe(http, "MeasRepUe", callbackReference=inbox.url)
    server.tell(report_of("ue-1"))
    server.tell(report_of("ue-1"))
    told = inbox.wait(lambda one: True, "the measurement is told")
    check_shape(SPEC, "MeasRepUeNotification", told)
    assert (told["ecgi"], told["associateId"], told["trigger"]) == (ecgi("0000001"), [UE_1], 1)
    assert told["rsrp"] == rsrp_of(-50.0)
    neighbours = {one["ecgi"]["cellId"]: one["rsrp"] for one in told["eutranNeighbourCellMeasInfo"]}
    assert neighbours == {"0000002": rsrp_of(-60.0), "0000003": rsrp_of(-70.0)}
    assert len(inbox.got) == 1, "a user is told of at most once a second"
    remove(http, value)


def test_levels_are_on_the_scales_of_36_133() -> None:
    assert [rsrp_of(level) for level in (-150, -140.5, -140, -139.5, -44.5, -44, -30)] == [0, 0, 1, 1, 96, 97, 97]
    assert [rsrq_of(level) for level in (-25, -19.5, -19, -3.5, 0)] == [0, 1, 2, 33, 34]
    assert all(rsrp_of(dbm_of(step)) == step for step in range(98))


def test_queries_answer_what_the_radio_knows(server: MecServer, http: httpx.Client) -> None:
    server.tell(report_of("ue-1", "gw-1"))
    server.tell(report_of("ue-2", "gw-3"))
    measured = http.get("/rni/v2/queries/layer2_meas").json()
    check_shape(SPEC, "L2Meas", measured)
    count = {one["ecgi"]["cellId"]: one["number_of_active_ue_dl_nongbr_cell"] for one in measured["cellInfo"]}
    assert (count["0000001"], count["0000003"]) == (1, 1)
    users = {one["associateId"]["value"]: one["ecgi"]["cellId"] for one in measured["cellUEInfo"]}
    assert users == {UE_1["value"]: "0000001", UE_2["value"]: "0000003"}
    one = http.get("/rni/v2/queries/layer2_meas", params={"ue_ipv4_address": UE_2["value"]}).json()
    assert [each["ecgi"]["cellId"] for each in one["cellUEInfo"]] == ["0000003"]
    cell = http.get("/rni/v2/queries/layer2_meas?cell_id=0000001,0000002").json()
    assert [each["ecgi"]["cellId"] for each in cell["cellInfo"]] == ["0000001", "0000002"]
    [plmn] = http.get("/rni/v2/queries/plmn_info?app_ins_id=me").json()
    check_shape(SPEC, "PlmnInfo", plmn)
    assert (plmn["appInstanceId"], plmn["plmn"]) == ("me", [{"mcc": "001", "mnc": "01"}])


def test_what_the_radio_does_not_know_is_said_to_be_so(http: httpx.Client) -> None:
    assert http.get("/rni/v2/queries/plmn_info").status_code == 400
    for query in ("rab_info", "s1_bearer_info"):
        answer = http.get(f"/rni/v2/queries/{query}")
        assert answer.status_code == 404
        assert "not known here" in answer.json()["detail"]
    bearer = {
        "subscriptionType": "RabEstSubscription",
        "filterCriteriaQci": {"qci": 1},
        "callbackReference": "http://x",
    }
    answer = http.post("/rni/v2/subscriptions", json=bearer)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert http.post("/rni/v2/subscriptions", json=bearer | {"subscriptionType": "x"}).status_code == 400
    assert http.get("/rni/v2/subscriptions?subscription_type=rab_est").json()["_links"].get("subscription", []) == []
    assert http.get("/rni/v2/subscriptions?subscription_type=x").status_code == 400


def test_cell_changes_come_by_websocket(server: MecServer, http: httpx.Client) -> None:
    value = subscribe(http, "CellChange", websockNotifConfig={"requestWebsocketUri": True})
    with connect(value["websockNotifConfig"]["websocketUri"], proxy=None) as socket:
        server.tell(handover_of("ue-1", "gw-1", "gw-2"))
        assert json.loads(socket.recv(timeout=20))["trgEcgi"] == [ecgi("0000002")]
    remove(http, value)


# --- consumed -----------------------------------------------------------------------------------------------
PORT = """
[planner]
handovers = "mec012"
[planner.handover_settings]
rnis = "{rnis}/rni/v2"
users = {{ "10.77.200.1" = "ue-a" }}
cells = {{ "0000001" = "gw-2", "0000003" = "gw-3" }}
"""


@pytest.fixture(params=["websocket", "callback"])
def consumer(
    server: MecServer, region: FakeRegion, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[MecServer]:
    """A second controller: the same user has another name there, the same cells lead to its own base stations."""
    planner = PORT.format(rnis=server.url)
    with serving(tmp_path, planner=planner, extra=MEC) as consumer:
        before = 0
        if request.param == "callback":
            consumer.stop()
            before = consumer.log.read_text().count("is heard")
            text = consumer._config.read_text()
            consumer._config.write_text(text.replace("[mec]", f'callback = "{consumer.url}"\n[mec]', 1))
            consumer.start()
        wait_until(lambda: consumer.log.read_text().count("is heard") > before, "the consumer subscribes")
        yield consumer


def test_another_controllers_radio_feeds_the_planner(
    server: MecServer, http: httpx.Client, consumer: MecServer
) -> None:
    """A user that reports to the first controller only is known to the second: by cell, level and handover."""
    with consumer.http() as there:

        def known() -> bool:
            server.tell(report_of("ue-1", "gw-1"))  # as users do, again and again: the websocket opens meanwhile
            answer = there.get("/v1/users/ue-a")
            return answer.status_code == 200 and answer.json()["base_station"] == "gw-2"

        wait_until(known, "the second controller knows the user's cell", 20)
        server.tell(handover_of("ue-1", "gw-1", "gw-3"))
        wait_until(
            lambda: any(one["kind"] == "handover" and one["user"] == "ue-a" for one in there.get("/v1/log").json()),
            "the second controller hears of the handover", 20,
        )  # fmt: skip

    def subscriptions() -> int:
        return len(http.get("/rni/v2/subscriptions").json()["_links"].get("subscription", []))

    assert subscriptions() == 2
    consumer.stop()
    assert subscriptions() == 0, "it leaves nothing behind"


def test_a_service_that_asks_for_a_token_is_heard_with_it(tmp_path: Path) -> None:
    """By HTTP and by websocket; with one that is not known the consumer says so, and goes on when it is exchanged."""
    lines = (config_line("other", TokenRole.CONSUMER, "secret"), config_line("ops", TokenRole.OPERATE, "ops"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    file = tmp_path / "rnis.token"
    file.write_text("guess\n")
    with serving(tmp_path / "a", extra=f"{MEC}\n[api]\ntokens = [{', '.join(lines)}]\n", token="ops") as server:
        planner = PORT.format(rnis=server.url) + f'token_file = "{file}"\n'
        with serving(tmp_path / "b", planner=planner) as consumer, server.http() as http, consumer.http() as there:
            wait_until(lambda: "answered with status 401" in consumer.log.read_text(), "it is told why nothing comes")
            file.write_text("secret\n")
            wait_until(lambda: "is heard" in consumer.log.read_text(), "the consumer subscribes")
            http.headers["Authorization"] = "Bearer ops"
            event = report_of("ue-1", "gw-1")

            def known() -> bool:
                told = http.post("/v1/users/ue-1/events", content=msgspec.json.encode(event))
                assert told.status_code == 200
                user = there.get("/v1/users/ue-a")
                return user.status_code == 200 and user.json()["base_station"] == "gw-2"

            wait_until(known, "what the service tells by the websocket is heard", 20)
            consumer.stop()
            left = http.get("/rni/v2/subscriptions").json()["_links"].get("subscription", [])
            assert left == [], "it leaves nothing behind"


def test_a_token_goes_to_the_service_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    settings = SETTINGS | {"rnis": "https://rnis.example/rni/v2", "token_file": str(file)}
    port = port_of("mec012").make(lambda event: None, settings)
    assert isinstance(port, Mec012)
    web, socket = ("http", "https"), ("ws", "wss")
    assert port._own_address("https://rnis.example:443/x", web)
    assert port._own_address("wss://rnis.example/x", socket)
    for url, schemes in (
        ("http://rnis.example:443/x", web), ("https://rnis.example:8443/x", web), ("ws://rnis.example:443/x", socket),
        ("wss://other.example/x", socket),
    ):  # fmt: skip
        with pytest.raises(Exception, match="which is not at"):
            port._own_address(url, schemes)


SETTINGS = {
    "rnis": "http://127.0.0.1:9/rni/v2",
    "users": {"10.0.0.1": "ue-1"},
    "cells": {"000000A": "bs-1", "000000b": "bs-2"},
}


def change(status: int, at_s: int, part_s: float = 0.0, source: str = "000000a", **fields: Any) -> bytes:
    body = {
        "notificationType": "CellChangeNotification", "hoStatus": status, "srcEcgi": ecgi(source),
        "trgEcgi": [ecgi("000000B")], "associateId": [{"type": 1, "value": "10.0.0.1"}],
        "timeStamp": {"seconds": at_s, "nanoSeconds": int(part_s * 1e9)},
        "_links": {"subscription": {"href": "http://x"}},
    }  # fmt: skip
    return json.dumps(body | fields).encode()


@pytest.fixture
def told() -> list[UserEvent]:
    return []


@pytest.fixture
def port(told: list[UserEvent]) -> Mec012:
    made = port_of("mec012").make(told.append, SETTINGS)
    assert isinstance(made, Mec012)
    return made


def test_an_interruption_is_measured_where_the_network_says_when_it_began(port: Mec012, told: list[UserEvent]) -> None:
    port.take(change(2, 100, 0.25))
    port.take(change(3, 100, 0.5))
    port.take(change(3, 200))
    first, second = told
    assert isinstance(first, HandoverRecord)
    assert isinstance(second, HandoverRecord)
    assert (first.user, first.source, first.target) == ("ue-1", "bs-1", "bs-2")
    assert first.interruption_ms == pytest.approx(250)
    assert first.unix_s == pytest.approx(100.25)
    assert second.interruption_ms == USUAL_INTERRUPTION_MS


def test_a_handover_that_was_ordered_bears_its_order(port: Mec012, told: list[UserEvent]) -> None:
    port.order(HandoverOrder(user="ue-1", target="bs-2", id="d-7"))
    port.take(change(3, 100))
    [record] = told
    assert isinstance(record, HandoverRecord)
    assert (record.order, record.ordered) == ("d-7", True)


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"{}", b'{"notificationType":"CellChangeNotification"}', b'{"notificationType":"X"}', b"\xff",
        change(3, 1, associateId=[{"type": 1, "value": "10.9.9.9"}]), change(3, 1, source="ffffff0"),
        change(3, 1, trgEcgi=[]), change(9, 1), change(1, 1), change(5, 1),
    ],
)  # fmt: skip
def test_a_notification_of_nobody_or_of_nothing_is_passed_over(
    port: Mec012, told: list[UserEvent], body: bytes
) -> None:
    port.take(body)
    assert told == []


def test_who_reports_itself_is_believed_before_the_network(port: Mec012, told: list[UserEvent]) -> None:
    port.answer("ue-1")
    port.take(change(3, 100))
    assert told == []


def test_measurements_become_reports(port: Mec012, told: list[UserEvent]) -> None:
    body = {
        "notificationType": "MeasRepUeNotification", "trigger": 1, "ecgi": ecgi("000000a"), "rsrp": 60, "rsrq": 20,
        "associateId": [{"type": 1, "value": "10.0.0.1"}], "_links": {"subscription": {"href": "http://x"}},
        "eutranNeighbourCellMeasInfo": [{"ecgi": ecgi("000000b"), "rsrp": 80, "rsrq": 10}],
    }  # fmt: skip
    port.take(json.dumps(body).encode())
    [report] = told
    assert isinstance(report, UserReport)
    assert (report.user, report.serving) == ("ue-1", "bs-1")
    assert [(one.base_station, one.filtered_dbm) for one in report.hears] == [("bs-2", -60.5), ("bs-1", -80.5)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        SETTINGS | {"rnis": "rnis.example"},
        SETTINGS | {"callback": "unix:/x"},
        SETTINGS | {"users": ["ue-1"]},
        SETTINGS | {"colour": "red"},
        SETTINGS | {"token_file": "/nowhere/token"},
        SETTINGS | {"token_file": "/dev/null"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="handover_settings"):
        port_of("mec012").make(lambda event: None, settings)
