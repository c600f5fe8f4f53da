from __future__ import annotations

from pathlib import Path

import pytest

from whimbrel.lab import topology
from whimbrel.model.errors import BadInput
from whimbrel.model.node import Role

DEFAULT = Path(topology.__file__).parent / "topologies/default.toml"


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
    with pytest.raises(BadInput, match=r"no node 'edge-9': it has router, ctl, edge-1"):
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
    text = DEFAULT.read_text()
    assert text.count(old) >= 1
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=message) as caught:
        topology.load(file)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


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
