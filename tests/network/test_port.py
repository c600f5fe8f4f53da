"""A port's life beside a migration: failures, restarts, removal."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import pytest
from network_region import ADDRESS, GATEWAY, SERVICE
from pyroute2 import IPRoute

from whimbrel.model.errors import BadInput, Conflict, Refused
from whimbrel.network import netns
from whimbrel.network.names import port_name
from whimbrel.network.overlay import find_link
from whimbrel.network.port import ServicePort

pytestmark = pytest.mark.real


def _link_exists(region) -> bool:
    def there() -> bool:
        with IPRoute() as ip:
            return find_link(ip, port_name(SERVICE)) is not None

    return region.run("edge-1", there)


def test_removing_leaves_nothing_and_can_be_repeated(region) -> None:
    info = region.create("edge-1")
    ports = region.ports["edge-1"]
    assert _link_exists(region)
    region.run("edge-1", ports.remove, SERVICE)
    region.run("edge-1", ports.remove, SERVICE)
    assert not _link_exists(region)
    assert not ports.exists(SERVICE)
    assert not info.netns_path.exists()
    region.create("edge-1")


def test_a_second_port_of_the_same_service_is_refused_and_the_first_lives(region) -> None:
    region.create("edge-1")
    region.ports["edge-1"].open(SERVICE)
    with pytest.raises((Refused, Conflict), match="already"):
        region.create("edge-1")
    assert region.run("edge-1", region.ports["edge-1"].is_open, SERVICE)


@pytest.mark.parametrize(("address", "gateway"), [("10.77.1", GATEWAY), (ADDRESS, "gw-1")])
def test_a_wrong_address_leaves_nothing(region, address: str, gateway: str) -> None:
    with pytest.raises(BadInput, match="not an IPv4 address"):
        region.run("edge-1", region.ports["edge-1"].create, SERVICE, address, gateway)
    assert not _link_exists(region)


def test_a_failure_half_way_leaves_nothing(region) -> None:
    with pytest.raises(Refused, match="making the network port of echo failed"):
        # the gateway is not on the service's subnet: the route, the last step, fails
        region.run("edge-1", region.ports["edge-1"].create, SERVICE, ADDRESS, "198.51.100.1")
    assert not _link_exists(region)
    assert not region.ports["edge-1"].exists(SERVICE)


def test_a_service_without_a_port_is_named(region) -> None:
    for step in ("open", "close", "announce", "receive_queue_bytes", "established", "info"):
        with pytest.raises(Refused, match="nobody has no network port on this node"):
            getattr(region.ports["edge-1"], step)("nobody")


def test_a_restarted_agent_finds_its_ports_again(region, tmp_path) -> None:
    before = region.create("edge-1")
    again = region.run("edge-1", ServicePort, tmp_path / "edge-1")
    assert region.run("edge-1", again.info, SERVICE) == before
    region.run("edge-1", again.open, SERVICE)
    again.announce(SERVICE)
    assert region.run("edge-1", again.is_open, SERVICE)
    region.run("edge-1", again.remove, SERVICE)


def test_the_receive_queue_is_seen_from_outside(region) -> None:
    info = region.create("edge-1")
    ports = region.ports["edge-1"]

    def pair() -> tuple[socket.socket, socket.socket]:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("127.0.0.1", 9000))
        return receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    receiver, sender = netns.call(info.netns_path, pair)
    assert ports.receive_queue_bytes(SERVICE) == 0
    sender.sendto(bytes(100), ("127.0.0.1", 9000))
    assert ports.receive_queue_bytes(SERVICE) >= 100
    receiver.recv(200)
    assert ports.receive_queue_bytes(SERVICE) == 0
    receiver.close()
    sender.close()


def test_established_connections_are_counted(region) -> None:
    info = region.create("edge-1")

    def connected() -> list[socket.socket]:
        server = socket.create_server(("127.0.0.1", 9000))
        client = socket.create_connection(("127.0.0.1", 9000))
        return [server, client, server.accept()[0]]

    sockets = netns.call(info.netns_path, connected)
    assert region.ports["edge-1"].established(SERVICE) == 2, "both ends are in this namespace"
    for sock in sockets:
        sock.close()


def test_announcing_repeats_stop_with_the_port(region) -> None:
    region.create("edge-1")
    region.ports["edge-1"].announce(SERVICE)
    begin = time.monotonic()
    region.run("edge-1", region.ports["edge-1"].remove, SERVICE)
    assert time.monotonic() - begin < 1.0


def _network_of_an_engine() -> None:
    with IPRoute() as ip:
        ip.link("add", ifname="eth0", kind="bridge")
        index = ip.link_lookup(ifname="eth0")[0]
        ip.addr("add", index=index, address="172.31.0.5", prefixlen=24)
        ip.link("set", index=index, state="up")
        ip.route("add", dst="default", gateway="172.31.0.1")


def test_a_port_is_plugged_into_a_network_that_is_there(region, tmp_path: Path) -> None:
    """What the container's engine gave it stays as it is; what comes by the overlay is answered by the overlay."""
    theirs = tmp_path / "theirs"
    netns.create(theirs)
    netns.call(theirs, _network_of_an_engine)
    ports = region.ports["edge-1"]
    try:
        info = region.run("edge-1", lambda: ports.create(SERVICE, ADDRESS, GATEWAY, inside=theirs))
        assert info.interface == "whimbrel0"
        assert info.netns_path.stat().st_ino == theirs.stat().st_ino

        def route(source: str) -> str:
            argv = ["ip", "route", "get", "10.99.0.7", "from", source]
            return netns.call(theirs, lambda: subprocess.run(argv, capture_output=True, text=True, check=True)).stdout

        region.run("edge-1", ports.open, SERVICE)
        assert "dev whimbrel0" in route(ADDRESS.split("/")[0])
        assert "dev eth0" in route("172.31.0.5")
        region.run("edge-1", ports.remove, SERVICE)
        assert netns.call(theirs, socket.if_nameindex)[-1][1] == "eth0", "only ours is gone"
    finally:
        region.run("edge-1", ports.remove, SERVICE)
        netns.remove(theirs)
