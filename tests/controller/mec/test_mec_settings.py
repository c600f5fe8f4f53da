"""The sections of the configuration, and who may call the interfaces."""

from __future__ import annotations

import contextlib
import json
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
from mec_server import MEC, MecServer, serving
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from live_controller import wait_until
from whimbrel.controller.access import TokenRole, config_line
from whimbrel.controller.config import load, parse
from whimbrel.controller.mec.subscriptions import MOST_SOCKETS
from whimbrel.lab import config as lab_config
from whimbrel.lab.radio import user_overlay_address
from whimbrel.lab.topology import load as load_topology
from whimbrel.model.errors import BadInput

NODES = """
listen = "unix:/x/c.sock"
state_dir = "/x"
""" + "".join(
    f'[[nodes]]\nname = "gw-{n}"\nrole = "gateway"\nhost = "192.0.2.{n}"\nport = 7411\noverlay_host = "192.0.2.{n}"\n'
    for n in (1, 2)
)
SAID = """
[mec]
callbacks = ["10.0.0.0/8", "app.example:8080"]
url = "http://mec.example:8077/"
plmn = "262010"
origin = { lat = 48.2, lon = 16.37 }
[mec.users]
ue-1 = "10.77.255.254"
[mec.cells]
gw-2 = "00ABCDE"
"""


def test_what_is_said_is_read() -> None:
    mec = parse(NODES + SAID).mec
    assert mec.callbacks.networks == (ip_network("10.0.0.0/8"),)
    assert mec.callbacks.has_place("APP.example", 8080)
    assert (mec.url, mec.mcc, mec.mnc) == ("http://mec.example:8077", "262", "010")
    assert mec.cells == {"gw-1": "0000001", "gw-2": "00abcde"}
    assert mec.zones == {"gw-1": "gw-1", "gw-2": "gw-2"}, "a base station without a zone is one by itself"


def test_nothing_has_to_be_said() -> None:
    mec = parse(NODES).mec
    assert mec.callbacks.has_address("127.0.0.1"), "a controller that listens locally reaches its own host"
    assert not mec.callbacks.has_address("10.0.0.1")


TOKENS = config_line("ops", TokenRole.OPERATE, "x")


@pytest.mark.parametrize("api", [f"tokens = [{TOKENS}]", 'hosts = ["edge.example"]'])
def test_behind_a_proxy_nothing_is_reached_that_is_not_said(api: str) -> None:
    """A local listener that asks for tokens, or goes by another name, has callers that are not on this host."""
    nodes = NODES.replace("unix:/x/c.sock", "tcp:127.0.0.1:8077")
    assert parse(nodes).mec.callbacks.has_address("127.0.0.1")
    mec = parse(f"{nodes}\n[api]\n{api}\n").mec
    assert not mec.callbacks.has_address("127.0.0.1")
    assert str(mec.callbacks) == "nothing"
    said = parse(f"{nodes}\n[api]\n{api}\n[mec]\ncallbacks = ['127.0.0.0/8']\n").mec
    assert said.callbacks.has_address("127.0.0.1")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"10.0.0.0/8"', '"everywhere"', "callbacks: 'everywhere'"),
        ('"http://mec.example:8077/"', '"mec.example"', "leads nowhere"),
        ('"262010"', '"26"', "plmn"),
        ("lat = 48.2", "lat = 98.2", "origin|latitude"),
        ('"10.77.255.254"', '"ue"', "no IP address"),
        ('ue-1 = "10.77.255.254"', 'ue-1 = "::1"\nue-2 = "::1"', "each needs its own"),
        ('"00ABCDE"', '"ABCDE"', "7 hexadecimal digits"),
        ('"00ABCDE"', '"0000001"', "another cell has the identity"),
        ("gw-2 =", "gw-9 =", "no gateway of that name"),
        ("plmn", "colour", "colour"),
    ],
)
def test_what_cannot_be_meant_is_refused(old: str, new: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse(NODES + SAID.replace(old, new))


def test_a_lab_tells_its_users_addresses(tmp_path: Path) -> None:
    topology = load_topology(Path("coordinated"))
    lab_config.write_configs(topology, tmp_path)
    users = load(lab_config.controller_config(tmp_path)).mec.users
    assert users == {user.name: str(user_overlay_address(topology, user)) for user in topology.users}
    assert users


def test_a_consumers_token_is_for_these_interfaces_only(tmp_path: Path) -> None:
    lines = (config_line("app", TokenRole.CONSUMER, "secret"), config_line("ops", TokenRole.OPERATE, "other"))
    api = f"\n[api]\ntokens = [{', '.join(lines)}]\n"
    with serving(tmp_path, extra=MEC + api, token="other") as server, server.http() as http:
        assert http.get("/location/v2/queries/zones").status_code == 401
        http.headers["Authorization"] = "Bearer secret"
        assert http.get("/location/v2/queries/zones").status_code == 200
        assert http.get("/v1/nodes").status_code == 403
        wanted = {
            "subscriptionType": "MobilityProcedureSubscription", "filterCriteria": {},
            "websockNotifConfig": {"requestWebsocketUri": True},
        }  # fmt: skip
        made = http.post("/amsi/v1/subscriptions", json=wanted)
        assert made.status_code == 201
        uri = made.json()["websockNotifConfig"]["websocketUri"]
        with pytest.raises(InvalidStatus), connect(uri, proxy=None):
            pass
        with connect(uri, proxy=None, additional_headers={"Authorization": "Bearer secret"}) as socket:
            http.put(made.json()["_links"]["self"]["href"], json=wanted | {"requestTestNotification": True})
            assert "TestNotification" in str(socket.recv(timeout=20))
        assert http.post("/rni/notifications/guess", json={}).status_code == 404, "no token, but a secret is needed"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('app = ["x y"]', "is no service"), ('app = ["a*b"]', "is no service"), ('ops = ["x"]', "role consumer"),
        ('nobody = ["x"]', "role consumer"), ('app = "x"', "array"),
    ],
)  # fmt: skip
def test_a_speaker_that_cannot_be_meant_is_refused(line: str, says: str) -> None:
    tokens = (config_line("app", TokenRole.CONSUMER, "1"), config_line("ops", TokenRole.OPERATE, "2"))
    said = f"{NODES}\n[api]\ntokens = [{', '.join(tokens)}]\n[mec.speaks_for]\n"
    assert parse(f'{said}app = ["video-*"]').mec.speakers.may("app", "video-ue-1")
    with pytest.raises(BadInput, match=says):
        parse(said + line)


def test_a_consumer_speaks_for_the_services_that_are_named_and_an_operator_for_all(tmp_path: Path) -> None:
    lines = [config_line(name, TokenRole.CONSUMER, f"secret-{name}") for name in ("one", "two")]
    lines.append(config_line("ops", TokenRole.OPERATE, "other"))
    api = f"\n[api]\ntokens = [{', '.join(lines)}]\n"
    speaks = '\n[mec.speaks_for]\none = ["cam-*"]\n'
    device = {"associateId": {"type": "UE_IPv4_ADDRESS", "value": "10.0.0.1"}}
    fixed = device | {"appMobilityServiceLevel": "APP_MOBILITY_NOT_ALLOWED"}
    path = "/amsi/v1/app_mobility_services"

    def body(service: str, *devices: object) -> dict[str, object]:
        return {"serviceConsumerId": {"appInstanceId": service}, "deviceInformation": list(devices)}

    with (
        serving(tmp_path, extra=MEC + speaks + api, token="other") as server,
        as_(server, "secret-one") as one,
        as_(server, "secret-two") as two,
        as_(server, "other") as operator,
    ):
        for name in ("cam-1", "counter"):
            run = {"name": name, "node": "edge-1", "image": "oci:/x"}
            assert operator.post("/v1/services", json=run).status_code == 201

        def moves(service: str) -> int:
            wanted = {"service": service, "destination": "edge-2", "dry_run": True}
            return operator.post("/v1/migrations", json=wanted).status_code

        for http, service in ((one, "counter"), (two, "counter"), (two, "cam-1"), (one, "cam")):
            refused = http.post(path, json=body(service, fixed))
            assert refused.status_code == 403
            assert "[mec.speaks_for]" in refused.json()["detail"]
        plain = two.post(path, json=body("counter"))
        assert plain.status_code == 201, "it takes part, and says nothing of anybody's devices"
        assert two.put(plain.headers["Location"], json=body("counter", fixed)).status_code == 403
        assert moves("counter") == 202
        assert one.post(path, json=body("cam-1", fixed)).status_code == 201
        assert moves("cam-1") == 422
        assert operator.post(path, json=body("counter", fixed)).status_code == 201
        server.stop()
        text = server._config.read_text()
        server._config.write_text(text.replace("one = [", "two = ["))
        server.start()
        assert moves("cam-1") == 202, "who speaks for it no longer is not heard"


def as_(server: MecServer, token: str) -> httpx.Client:
    http = server.http()
    http.headers["Authorization"] = f"Bearer {token}"
    return http


def test_what_a_consumer_made_is_its_own(tmp_path: Path) -> None:
    lines = [config_line(name, TokenRole.CONSUMER, f"secret-{name}") for name in ("one", "two")]
    lines.append(config_line("ops", TokenRole.OPERATE, "other"))
    api = f"\n[api]\ntokens = [{', '.join(lines)}]\n"
    websocket = {"websockNotifConfig": {"requestWebsocketUri": True}}
    circle = {
        "callbackReference": {"notifyURL": "http://127.0.0.1:9/"}, "frequency": 1, "trackingAccuracy": 1,
        "address": ["acr:ue-1"], "latitude": 0, "longitude": 0, "radius": 1, "checkImmediate": False,
        "enteringLeavingCriteria": "Entering",
    }  # fmt: skip
    cases = {
        "/amsi/v1/subscriptions": {"subscriptionType": "MobilityProcedureSubscription", "filterCriteria": {}}
        | websocket,
        "/rni/v2/subscriptions": {"subscriptionType": "CellChangeSubscription", "filterCriteriaAssocHo": {}}
        | websocket,
        "/location/v2/subscriptions/area/circle": {"circleNotificationSubscription": circle},
        "/amsi/v1/app_mobility_services": {"serviceConsumerId": {"appInstanceId": "cam"}},
    }
    lists = {"/amsi/v1/subscriptions": "?subscriptionType=mobility_proc"}
    with (
        serving(tmp_path, extra=MEC + api, token="other") as server,
        as_(server, "secret-one") as one,
        as_(server, "secret-two") as two,
        as_(server, "other") as operator,
    ):
        for path, body in cases.items():
            made = one.post(path, json=body)
            assert made.status_code == 201, made.text
            place = made.headers["Location"]
            name = place.rsplit("/", 1)[-1]
            assert two.get(place).status_code == 404
            assert two.put(place, json=body).status_code == 404
            assert two.delete(place).status_code == 404
            asked = path + lists.get(path, "")
            assert name not in two.get(asked).text
            assert name in one.get(asked).text
            assert name in operator.get(asked).text
            assert operator.put(place, json=body).status_code == 200
            assert one.get(place).status_code == 200, "an operator's change leaves it whose it was"
            if "websockNotifConfig" in body:
                uri = made.json()["websockNotifConfig"]["websocketUri"]
                with pytest.raises(InvalidStatus):
                    connect(uri, proxy=None, additional_headers={"Authorization": "Bearer secret-two"})
                mine = {"Authorization": "Bearer secret-one"}
                with contextlib.ExitStack() as sockets:
                    for _ in range(MOST_SOCKETS):
                        sockets.enter_context(connect(uri, proxy=None, additional_headers=mine))
                    with pytest.raises(InvalidStatus):
                        connect(uri, proxy=None, additional_headers=mine)
        server.kill()
        server.start()
        for path in cases:
            asked = path + lists.get(path, "")
            assert len(one.get(asked).text) > len(two.get(asked).text), "also after a restart"
            assert len(two.get(asked).text) < 400


def test_a_test_notification_waits_for_its_websocket(tmp_path: Path) -> None:
    with serving(tmp_path) as server, server.http() as http:
        for path, kind, criteria in (
            ("/amsi/v1", "MobilityProcedureSubscription", "filterCriteria"),
            ("/rni/v2", "CellChangeSubscription", "filterCriteriaAssocHo"),
        ):
            wanted = {
                "subscriptionType": kind, criteria: {}, "requestTestNotification": True,
                "websockNotifConfig": {"requestWebsocketUri": True},
            }  # fmt: skip
            made = http.post(f"{path}/subscriptions", json=wanted).json()
            uri = made["websockNotifConfig"]["websocketUri"]
            with connect(uri, proxy=None) as socket:
                told = json.loads(socket.recv(timeout=20))
            assert told["notificationType"] == "TestNotification"
            assert told["_links"]["subscription"] == made["_links"]["self"]
            with connect(uri, proxy=None) as socket, pytest.raises(TimeoutError):
                socket.recv(timeout=0.5)  # it came once


PORT = """
[planner]
handovers = "mec012"
[planner.handover_settings]
rnis = "{rnis}/rni/v2"
users = {{ "10.77.200.1" = "ue-a" }}
cells = {{ "0000001" = "gw-2" }}
"""


def test_a_radio_service_that_was_away_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        serving(tmp_path / "a") as server,
        serving(tmp_path / "b", planner=PORT.format(rnis=server.url)) as consumer,
    ):
        wait_until(lambda: consumer.log.read_text().count("is heard") == 1, "the consumer subscribes")
        server.kill()
        wait_until(lambda: "tells nothing" in consumer.log.read_text(), "it is told once that nothing comes")
        server.start()
        wait_until(lambda: consumer.log.read_text().count("is heard") == 2, "the consumer subscribes again")
