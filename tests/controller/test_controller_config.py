from __future__ import annotations

import re
from pathlib import Path

import pytest

from whimbrel.controller.config import load, parse
from whimbrel.controller.listen import parse_listen
from whimbrel.model.errors import BadInput

NODE = '[[nodes]]\nname = "edge-1"\nrole = "edge"\nhost = "192.0.2.1"\nport = 7411\noverlay_host = "192.0.2.1"\n'
OTHER = NODE.replace("edge-1", "edge-2").replace("192.0.2.1", "192.0.2.2")


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "controller.toml"
    path.write_text(
        'listen = "tcp:127.0.0.1:8077"\nstate_dir = "/tmp/x"\naddress_pool = "10.9.4.0/20"\n' + NODE + OTHER
    )
    config = load(path)
    assert str(config.listen) == "tcp:127.0.0.1:8077"
    assert config.state_dir == Path("/tmp/x")
    assert [node.name for node in config.nodes] == ["edge-1", "edge-2"]
    assert str(config.address_pool) == "10.9.4.0/20"


def test_defaults() -> None:
    config = parse(NODE)
    assert str(config.listen) == "unix:/run/whimbrel/controller.sock"
    assert str(config.address_pool) == "10.77.1.0/16"
    assert config.database.render_as_string() == "sqlite:////var/lib/whimbrel/controller/controller.sqlite3"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nodes"),
        ("nodes = []", "no node is named"),
        ("a = [", "not a controller configuration"),
        ('database = "mysql://host/db"\n' + NODE, "database is of the kind 'mysql'"),
        ('listn = "x"\n' + NODE, "listn"),
        (NODE + "colour = 1\n", "colour"),
        (NODE.replace('"edge"', '"cloud"'), "cloud"),
        (NODE.replace("edge-1", "Edge 1"), "node name 'Edge 1' is not valid"),
        (NODE + NODE, "edge-1 is named twice"),
        (
            NODE + OTHER.replace('host = "192.0.2.2"', 'host = "192.0.2.1"', 1),
            "edge-1 and edge-2 have the same agent address",
        ),
        (
            NODE + OTHER.replace('overlay_host = "192.0.2.2"', 'overlay_host = "192.0.2.1"'),
            "same overlay_host",
        ),
        (NODE.replace("7411", "70000"), "port 1 to 65535"),
        (NODE.replace('overlay_host = "192.0.2.1"', 'overlay_host = "edge.local"'), "not an IPv4 address"),
        ('listen = "http://x"\n' + NODE, "unix:/PATH or tcp:HOST:PORT"),
        ('state_dir = "here"\n' + NODE, "not an absolute path"),
        ('address_pool = "fd00::/64"\n' + NODE, "address_pool"),
        ('address_pool = "10.0.0.1/32"\n' + NODE, "/8 to /30"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert re.search(says, str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing\.toml.*--config"):
        load(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("unix:/run/x.sock", True),
        ("tcp:127.0.0.1:80", True),
        ("tcp:[::1]:80", True),
        ("tcp:localhost:80", True),
        ("tcp:0.0.0.0:80", False),
        ("tcp:example.org:80", False),
    ],
)
def test_who_can_reach_it(text: str, local: bool) -> None:
    listen = parse_listen(text)
    assert listen.is_local is local
    assert str(listen) == text


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix:relative", "tcp:host", "tcp::80", "tcp:h:0", "tcp:h:65536", "tcp:h:²"]
)
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(BadInput, match="no controller address"):
        parse_listen(text)


def test_a_socket_path_that_the_kernel_cannot_take() -> None:
    with pytest.raises(BadInput, match="shorter"):
        parse_listen("unix:/" + "x" * 107)


GATEWAY = NODE.replace("edge-1", "gw-1").replace("192.0.2.1", "192.0.2.9").replace('"edge"', '"gateway"')
PLANNED = """
[planner]
planner = "nearest"
order = "early"
every_s = 0.5
solver = "highs"
solve_s = 2.0
policy = { hysteresis_db = 3.0 }
[[base_stations]]
name = "gw-1"
max_users = 7
"""


def test_how_to_plan_is_read() -> None:
    planning = parse(NODE + GATEWAY + PLANNED).planning
    assert (planning.setting.planner, planning.setting.order, planning.every_s) == ("nearest", "early", 0.5)
    assert (planning.solver, planning.solve_s) == ("highs", 2.0)
    assert planning.policy.hysteresis_db == 3.0
    assert [(one.name, one.max_users) for one in planning.base_stations] == [("gw-1", 7)]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"nearest"', '"best"', "there is no planner 'best': choose from cloud"),
        ('"early"', '"never"', "there is no order 'never'"),
        ("every_s = 0.5", "every_s = 0.0", "every_s"),
        ('"highs"', '"best"', "there is no solver 'best'"),
        ("solve_s = 2.0", "solve_s = 0.0", "solve_s"),
        ("hysteresis_db = 3.0", "hysteresis_db = -3.0", "hysteresis_db"),
        ('name = "gw-1"', 'name = "edge-1"', "base station edge-1: there is no gateway of that name"),
        ("max_users = 7", "max_users = -7", "max_users"),
        ("max_users = 7", 'technology = "pigeon"', "pigeon"),
        ("every_s = 0.5", 'handovers = "pigeon"', "there is no handover port 'pigeon'"),
        ("every_s = 0.5", "speed = 1", "speed"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(old: str, new: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse(NODE + GATEWAY + PLANNED.replace(old, new))
