from __future__ import annotations

from pathlib import Path

import pytest

from whimbrel.lab import picture, routes, topology
from whimbrel.lab.topology_checks import require_capacities
from whimbrel.model.errors import BadInput
from whimbrel.model.link import LinkShape
from whimbrel.model.node import Role, Tier

DEFAULT = Path(topology.__file__).parent / "topologies/default.toml"
COORDINATED = DEFAULT.with_name("coordinated.toml")


def test_the_default_has_three_edges_two_gateways_and_a_user() -> None:
    plan = topology.load()
    assert [edge.name for edge in plan.edges] == ["edge-1", "edge-2", "edge-3"]
    assert [gateway.name for gateway in plan.gateways] == ["gw-1", "gw-2"]
    assert str(plan.user_address(plan.users[0], plan.gateways[0])) == "10.99.0.2"
    assert plan.bridge_address(plan.gateways[0]) == "10.77.0.1/16"
    assert plan.namespace_path("edge-1") == Path("/run/netns/wl-edge-1")
    endpoint = plan.endpoint(plan.edges[1])
    assert (endpoint.host, endpoint.overlay_host, endpoint.role) == (
        "192.168.102.2",
        "192.168.102.2",
        Role.EDGE,
    )
    hosts = {plan.endpoint(site).host.rsplit(".", 1)[0] for site in plan.sites}
    assert len(hosts) == 5, "every node in a subnet of its own"


def test_an_unknown_node_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"no node 'edge-9': it has router, ctl, store, edge-1"):
        topology.load().namespace_path("edge-9")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "edge-2"', 'name = "edge-1"', "node name 'edge-1' is used twice"),
        ('name = "edge-2"', 'name = "router"', "'router' is used twice"),
        ('name = "edge-2"', 'name = "Edge 2"', "node name 'Edge 2' is not valid"),
        ('name = "edge-2"', 'name = "an-edge-of-16-ch"', "is not valid: 2 to 15"),
        ('name = "edge-2"', "name = 2", r"Expected `str`, got `int` - at `\$.edges\[1\].name`"),
        (
            'subnet = "192.168.102.0/24"',
            'subnet = "192.168.102.1/24"',
            "subnet of edge-2.*not an IPv4 subnet",
        ),
        ('subnet = "192.168.102.0/24"', 'subnet = "here"', "write it like 192.168.101.0/24"),
        ('subnet = "192.168.102.0/24"', 'subnet = "192.168.102.0/30"', "too small: use a /29"),
        (
            'subnet = "192.168.102.0/24"',
            'subnet = "192.168.0.0/16"',
            r"subnet of edge-2 192\.168\.0\.0/16 overlaps",
        ),
        ('subnet = "192.168.102.0/24"', 'subnett = "192.168.102.0/24"', "subnet"),
        ('overlay_address = "10.77.0.2"', 'overlay_address = "10.77.0.1"', "used by another gateway"),
        ('overlay_address = "10.77.0.2"', 'overlay_address = "10.78.0.2"', "not a host of overlay_subnet"),
        ('overlay_address = "10.77.0.2"', 'overlay_address = "10.77.0.0"', "not a host of overlay_subnet"),
        ('overlay_address = "10.77.0.2"', 'overlay_address = "x"', "'x' is not an IPv4 address"),
        ('["gw-1", "gw-2"]', '["gw-1", "gw-3"]', "no gateway 'gw-3', only gw-1, gw-2"),
        ('["gw-1", "gw-2"]', "[]", "name one gateway or several"),
        ('["gw-1", "gw-2"]', '["gw-1", "gw-1"]', "name one gateway or several"),
        ('name = "default"', 'name = "default"\nprefix = "no good-"', "prefix 'no good-' is not valid"),
        ('name = "default"', 'name = "default"\nport = 99999', "port 99999 is not valid"),
        ('name = "default"', 'name = "default"\ncolour = "red"', "unknown field `colour`"),
        ('name = "default"', "name = ", "is no topology"),
    ],
)
def test_a_mistake_is_named_with_file_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert_named(tmp_path, DEFAULT.read_text(), old, new, message)


def assert_named(tmp_path: Path, text: str, old: str, new: str, message: str) -> None:
    """With `old` replaced, loading says `message` in one line that names the file."""
    assert text.count(old) >= 1
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=message) as caught:
        topology.load(file)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["pop-2", "pop-3"]', '["pop-2", "pop-9"]', "link pop-2 - pop-9: there is no node 'pop-9', only pop-1, pop-2"),
        ('["pop-2", "pop-3"]', '["pop-2", "pop-2"]', "link pop-2 - pop-2: a node has no link to itself"),
        ('["pop-2", "pop-3"]', '["pop-2", "pop-1"]', "link pop-2 - pop-1: it is there twice"),
        ('["pop-2", "pop-3"]', '["edge-2", "edge-3"]', "link edge-2 - edge-3: links join two routers, a node and the"),
        ('["pop-2", "pop-3"]', '["pop-2"]', "between"),
        ('rate = "100mbit"', 'rate = "fast"', "link pop-1 - pop-2: 'fast' is not a bandwidth: write it like 100mbit"),
        ('rate = "100mbit"', 'rate = "10bit"', "rate 10bit is not possible: from 64kbit to 100gbit"),
        ('rate = "100mbit"', 'rate = "900gbit"', "rate 900gbit is not possible"),
        ('rate = "100mbit"', "rate = -5", "Expected `str`, got `int`"),
        ('delay = "50ms"', 'delay = "-50ms"', "'-50ms' is not a time: write it like 100ms"),
        ('delay = "50ms"', 'delay = "1min"', "delay 1min is not possible: at most 5s one way"),
        ('delay = "50ms"', 'delay = "50ms"\nqueue = "1kB"', "queue 1kB is too small: at least 16KiB"),
        ('rate = "100mbit"', 'queue = "1MB"', "a queue without a rate never fills"),
        (
            'at = "pop-2"',
            'at = "pop-9"',
            "at of edge-2: there is no router 'pop-9', only pop-1, pop-2, pop-3, pop-cloud",
        ),
        ('controller_at = "pop-cloud"', 'controller_at = "moon"', "controller_at: there is no router 'moon'"),
        ('name = "pop-cloud"', 'name = "edge-1"', "'edge-1' is used twice"),
        (
            "[[routers]]",
            '[[routers]]\nname = "island"\n[[routers]]',
            "router pop-1 cannot be reached from island: add a",
        ),
        ("192.168.101.0/24", "169.254.7.0/24", "overlaps the addresses between routers"),
        ("cpus = 0.7", "cpus = 0.0", "cpus of edge-1: 0 is no capacity"),
        ("cpus = 0.7", "cpus = -1", "cpus of edge-1: -1 is no capacity"),
        ("cpus = 0.7", "cpus = nan", "cpus of edge-1: nan is no capacity"),
        ("cpus = 0.7", "cpus = 1e9", r"cpus of edge-1: 1e\+09 is no capacity"),
        ("cpus = 0.7", 'cpus = "many"', "Expected `float | null`, got `str`"),
        ("cpus = 0.7", 'memory = "1MB"', "memory of edge-1: 1MB is too little: at least 64MiB"),
        ("cpus = 0.7", 'memory = "much"', "memory of edge-1: 'much' is not a size"),
        ('tier = "cloud"', 'tier = "heaven"', "Invalid enum value 'heaven'"),
        ("position = [20.0, 0.0]", "position = [20.0]", "position"),
        ("position = [20.0, 0.0]", "position = [inf, 0.0]", r"position of edge-2: \[inf, 0.0\] is no place"),
        ("tx_power_dbm = 20.0", "tx_power_dbm = 500.0", "tx_power_dbm of bs-1: 500 is no power"),
        ("tx_power_dbm = 20.0", "tx_power_dbm = nan", "tx_power_dbm of bs-1: nan is no power"),
        ("tx_power_dbm = 20.0", "max_users = 0", "max_users of bs-1: 0 is no number of users"),
        ("position = [0.0, 0.0]\ntx_power", "tx_power", "tx_power_dbm of bs-1: a base station needs a position too"),
    ],
)
def test_a_mistake_in_a_wide_area_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert_named(tmp_path, COORDINATED.read_text(), old, new, message)


def test_a_node_stronger_than_the_machine_is_refused(tmp_path: Path) -> None:
    """Not in the file's check, which may be done elsewhere, but before anything is built."""
    file = tmp_path / "mine.toml"
    file.write_text(COORDINATED.read_text().replace("cpus = 0.7", "cpus = 1000", 1))
    plan = topology.load(file)
    with pytest.raises(BadInput, match=r"cpus of edge-1: 1000, but this machine has \d+: ask for no more"):
        require_capacities(plan)


@pytest.mark.parametrize("name", topology.shipped())
def test_what_is_shipped_is_right_and_can_be_drawn(name: str, tmp_path: Path) -> None:
    plan = topology.load(Path(name))
    assert plan.name == name
    require_capacities(plan)
    picture.draw(plan, tmp_path / "it.png")
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        picture.draw(topology.load(), tmp_path / "nowhere" / "it.png")


def test_the_papers_testbed_is_as_the_paper_says() -> None:
    plan = topology.load(Path("coordinated"))
    assert [edge.name for edge in plan.edges if edge.tier is not Tier.CLOUD] == ["edge-1", "edge-2", "edge-3"]
    for a, b in (("edge-1", "edge-2"), ("edge-2", "edge-3")):
        assert routes.path(plan, a, b) == LinkShape(rate_bps=100e6, delay_ms=50.0)
    for edge in ("edge-1", "edge-2", "edge-3"):
        assert routes.path(plan, edge, "cloud") == LinkShape(rate_bps=75e6, delay_ms=150.0)
    assert routes.path(plan, "edge-1", "edge-3").delay_ms == 100.0, "past the neighbour, not by the cloud"
    assert routes.path(plan, "bs-2", "edge-2") == LinkShape()
    assert all(station.nat and station.position and station.tx_power_dbm for station in plan.gateways)
    assert routes.uplink_bps(plan, "edge-1") == 175e6


def test_a_node_s_own_link_counts(tmp_path: Path) -> None:
    text = DEFAULT.read_text().replace("[[edges]]", '[[links]]\nbetween = ["edge-1", "router"]\nrate = "10mbit"\n'
                                       'delay = "3ms"\n[[edges]]', 1)  # fmt: skip
    file = tmp_path / "mine.toml"
    file.write_text(text)
    plan = topology.load(file)
    assert routes.path(plan, "edge-2", "edge-1") == LinkShape(rate_bps=10e6, delay_ms=3.0)
    assert routes.path(plan, "edge-2", "edge-3") == LinkShape()
    assert routes.uplink_bps(plan, "edge-1") == 10e6
    assert routes.uplink_bps(plan, "edge-2") == 0


def test_a_topology_without_edges_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no topology file"):
        topology.load(tmp_path / "absent.toml")
    with pytest.raises(BadInput, match="cannot be read"):
        topology.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is no topology"):
        topology.load(tmp_path / "binary.toml")
    (tmp_path / "none.toml").write_text(
        'name = "x"\noverlay_subnet = "10.0.0.0/16"\ncontroller_subnet = "10.1.0.0/24"\nedges = []\ngateways = []\n'
    )
    with pytest.raises(BadInput, match=r"at least one \[\[edges\]\]"):
        topology.load(tmp_path / "none.toml")
