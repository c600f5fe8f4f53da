"""The lab's namespaces and links: sites behind a router, users behind gateways. No process is started here.

A user has a point-to-point link to each of its gateways, with /32 addresses as in a mobile network, so that a
handover moves a route and not a subnet. There is no address translation anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyroute2 import IPRoute

from whimbrel.lab.topology import (
    CONTROLLER,
    ROUTER,
    Gateway,
    Topology,
    User,
    node_address,
    router_address,
)
from whimbrel.model.errors import Refused
from whimbrel.network import netns
from whimbrel.network.overlay import explained, wait_until

UPLINK = "eth0"
STANDBY_TABLE = 100  # + place of the gateway in the user's list


def build(topology: Topology) -> None:
    """Make everything. Raises Conflict when a namespace of that name exists, Refused when not permitted; what
    was made until then stays (`remove` takes it away)."""
    for name in topology.namespaces:
        netns.create(topology.namespace_path(name))
        forwards = name == ROUTER or any(name == gateway.name for gateway in topology.gateways)
        _inside(topology, name, lambda forwards=forwards: _base_settings(forwards))  # type: ignore[misc]
    with explained("building the lab's network", "run as root, see `whimbrel check`"):
        _connect_sites(topology)
        for user in topology.users:
            _connect_user(topology, user)
        for name in topology.namespaces:
            _inside(topology, name, _wait_for_links)


def remove(topology: Topology) -> list[str]:
    """Remove the namespaces of this topology, links with them; returns the names of those that were there."""
    paths = [path for path in map(topology.namespace_path, topology.namespaces) if path.exists()]
    for path in paths:
        netns.remove(path)
    return [path.name for path in paths]


def _inside(topology: Topology, name: str, action: Callable[[], None]) -> None:
    netns.call(topology.namespace_path(name), action)


def _base_settings(forwards: bool) -> None:
    for scope in ("all", "default"):
        netns.write_sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 1)
        # answers may come back by the other gateway
        netns.write_sysctl(f"net/ipv4/conf/{scope}/rp_filter", 0)
    netns.write_sysctl("net/ipv4/ip_forward", int(forwards))
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")


def _wait_for_links() -> None:
    """A new link drops what is sent until the kernel has seen its carrier, which takes up to 1 s."""
    with IPRoute() as ip:

        def all_up() -> bool:
            return all(link.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN") for link in ip.get_links())

        if not wait_until(all_up, timeout_s=3.0):
            raise Refused("a link of the lab does not come up: run `whimbrel lab down`, then try again")


def _connect_sites(topology: Topology) -> None:
    ends = [(CONTROLLER, topology.controller_subnet), *((site.name, site.subnet) for site in topology.sites)]
    if topology.storage is not None:
        ends.append((topology.storage.name, topology.storage.subnet))

    def router_side() -> None:
        with IPRoute() as ip:
            for name, subnet in ends:
                index = _link_to(ip, name, topology.namespace_path(name), UPLINK)
                _address(ip, index, f"{router_address(subnet)}/{_length(subnet)}")
            for gateway in topology.gateways:  # users of one gateway are reached from the other through here
                ip.route("add", dst=gateway.access_subnet, gateway=str(node_address(gateway.subnet)))

    _inside(topology, ROUTER, router_side)
    for name, subnet in ends:

        def node_side(subnet: str = subnet) -> None:
            with IPRoute() as ip:
                _address(ip, ip.link_lookup(ifname=UPLINK)[0], f"{node_address(subnet)}/{_length(subnet)}")
                ip.route("add", dst="default", gateway=str(router_address(subnet)))

        _inside(topology, name, node_side)


def _connect_user(topology: Topology, user: User) -> None:
    for place, name in enumerate(user.attached):
        gateway = topology.gateway(name)
        address = str(topology.user_address(user, gateway))

        def gateway_side(gateway: Gateway = gateway, address: str = address) -> None:
            with IPRoute() as ip:
                index = _link_to(ip, user.name, topology.namespace_path(user.name), gateway.name)
                _address(ip, index, f"{router_address(gateway.access_subnet)}/32")
                ip.route("add", dst=f"{address}/32", oif=index, scope="link")

        def user_side(gateway: Gateway = gateway, address: str = address, place: int = place) -> None:
            hop = str(router_address(gateway.access_subnet))
            with IPRoute() as ip:
                index = ip.link_lookup(ifname=gateway.name)[0]
                _address(ip, index, f"{address}/32")
                ip.route("add", dst=f"{hop}/32", oif=index, scope="link", prefsrc=address)
                if place == 0:
                    ip.route("add", dst="default", gateway=hop, prefsrc=address)
                else:  # standing by: used by whoever binds to this address
                    ip.route(
                        "add",
                        dst="default",
                        gateway=hop,
                        oif=index,
                        prefsrc=address,
                        table=STANDBY_TABLE + place,
                    )
                    ip.rule("add", src=address, src_len=32, table=STANDBY_TABLE + place, priority=1000 + place)

        _inside(topology, name, gateway_side)
        _inside(topology, user.name, user_side)


def _link_to(ip: IPRoute, ifname: str, other: Path, peer_ifname: str) -> int:
    """A veth pair made right inside both namespaces: the host's own never sees it."""
    with other.open() as there:
        ip.link("add", ifname=ifname, kind="veth", peer={"ifname": peer_ifname, "net_ns_fd": there.fileno()})
    return int(ip.link_lookup(ifname=ifname)[0])


def _address(ip: IPRoute, index: int, text: str) -> None:
    address, length = text.split("/")
    ip.addr("add", index=index, address=address, prefixlen=int(length))
    ip.link("set", index=index, state="up")


def _length(subnet: str) -> int:
    return int(subnet.split("/")[1])
