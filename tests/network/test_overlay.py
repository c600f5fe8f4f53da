import msgspec
import pytest
from network_region import is_open
from pyroute2 import IPRoute

from whimbrel.model.errors import Refused
from whimbrel.network import netns
from whimbrel.network.names import BRIDGE, TUNNEL
from whimbrel.network.overlay import Overlay, find_link

pytestmark = pytest.mark.real


def _destinations() -> list[str]:
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=TUNNEL)[0]
        entries = ip.fdb("dump", ifindex=index)
        return sorted(
            e.get_attr("NDA_DST")
            for e in entries
            if e["ifindex"] == index and e.get_attr("NDA_LLADDR") == "00:00:00:00:00:00"
        )


def _indices() -> tuple[int, int]:
    with IPRoute() as ip:
        return ip.link_lookup(ifname=BRIDGE)[0], ip.link_lookup(ifname=TUNNEL)[0]


def test_peers_are_joined_and_forgotten(region) -> None:
    overlay = Overlay(region.topology.endpoint(region.topology.edges[0]))
    everybody = sorted(e.overlay_host for e in region.endpoints if e.name != "edge-1")
    assert region.run("edge-1", _destinations) == everybody
    region.run("edge-1", overlay.set_peers, [e for e in region.endpoints if e.name in ("edge-1", "edge-3")])
    assert region.run("edge-1", _destinations) == ["192.168.103.2"]
    region.run("edge-1", overlay.set_peers, region.endpoints)
    region.run("edge-1", overlay.set_peers, region.endpoints)
    assert region.run("edge-1", _destinations) == everybody


def test_up_again_keeps_bridge_tunnel_and_ports(region) -> None:
    region.create("edge-1")
    region.ports["edge-1"].open("echo")
    before = region.run("edge-1", _indices)
    region.run("edge-1", Overlay(region.endpoints[0]).up)
    assert region.run("edge-1", _indices) == before
    assert region.run("edge-1", is_open, "echo")


def test_a_tunnel_with_another_end_is_made_anew(region) -> None:
    def wrong_tunnel() -> None:
        with IPRoute() as ip:
            ip.link("del", index=ip.link_lookup(ifname=TUNNEL)[0])
            ip.link("add", ifname=TUNNEL, kind="vxlan", vxlan_id=5, vxlan_local="127.0.0.1", vxlan_port=4789)

    region.run("edge-1", wrong_tunnel)
    overlay = Overlay(region.endpoints[0])
    region.run("edge-1", overlay.up)
    region.run("edge-1", overlay.set_peers, region.endpoints)
    assert len(region.run("edge-1", _destinations)) == 4


def test_down_removes_both_and_can_be_repeated(region) -> None:
    overlay = Overlay(region.endpoints[0])

    def left() -> list[str]:
        with IPRoute() as ip:
            return [name for name in (BRIDGE, TUNNEL) if find_link(ip, name) is not None]

    region.run("edge-1", overlay.down)
    region.run("edge-1", overlay.down)
    assert region.run("edge-1", left) == []
    with pytest.raises(Refused, match="overlay is not up"):
        region.run("edge-1", overlay.set_peers, region.endpoints)
    with pytest.raises(Refused, match="has no bridge wb0"):
        region.create("edge-1")
    assert not region.ports["edge-1"].exists("echo")


def test_an_address_of_another_node_is_refused(region) -> None:
    wrong = msgspec.structs.replace(region.endpoints[0], overlay_host="192.0.2.77")
    with pytest.raises(Refused, match=r"overlay_host 192\.0\.2\.77 is not an address of edge-1"):
        region.run("edge-1", Overlay(wrong).up)


def test_a_gateway_that_does_not_forward_is_refused(region) -> None:
    region.run("gw-1", netns.write_sysctl, "net/ipv4/ip_forward", 0)
    gateway = region.topology.gateways[0]
    overlay = Overlay(region.topology.endpoint(gateway), region.topology.bridge_address(gateway))
    with pytest.raises(Refused, match=r"sysctl net\.ipv4\.ip_forward=1"):
        region.run("gw-1", overlay.up)
