"""The sections of the configuration, and who may call the interfaces."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from mec_server import MEC, serving
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from live_controller import wait_until
from whimbrel.controller.access import TokenRole, config_line
from whimbrel.controller.config import load, parse
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
