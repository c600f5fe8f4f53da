"""The lab's namespaces and links: sites behind routers, users behind gateways. No process is started here.

A user has a point-to-point link to each of its gateways, with /32 addresses as in a mobile network, so that a
handover moves a route and not a subnet. Addresses are translated only by the agents of gateways that are told to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address

from pyroute2 import IPRoute

from whimbrel.lab.routes import UPLINK, Foot, Way, Wire, homes, user_wires, ways_from, wires
from whimbrel.lab.topology import CONTROLLER, Topology, User, node_address, router_address
from whimbrel.model.errors import Refused
from whimbrel.network import netns
from whimbrel.network.netlink import NUD_PERMANENT
from whimbrel.network.overlay import explained, wait_until
from whimbrel.network.shaping import End, Relay, connect

STANDBY_TABLE = 100  # + place of the gateway in the user's list


def build(topology: Topology) -> list[tuple[Wire, Relay]]:
    """Make everything. Returns the relays that are to be started, with their wires.

    Raises Conflict when a namespace of that name exists, Refused when not permitted; what was made until then stays
    (`remove` takes it away)."""
    forwarding = {*topology.router_names, *(gateway.name for gateway in topology.gateways)}
    for name in topology.namespaces:
        netns.create(topology.namespace_path(name))
        _inside(topology, name, partial(_base_settings, name in forwarding))
    relays: list[tuple[Wire, Relay]] = []
    with ExitStack() as undo, explained("building the lab's network", "run as root, see `whimbrel check`"):
        for wire in wires(topology):
            relay = _connect(topology, wire)
            if relay is not None:
                undo.callback(relay.close)
                relays.append((wire, relay))
        _address_routers(topology)
        _address_nodes(topology)
        for user in topology.users:
            _address_user(topology, user)
        for wire in wires(topology):
            if wire.shape.delay_ms:
                _introduce(topology, wire)
        for name in topology.namespaces:
            _inside(topology, name, _wait_for_links)
        undo.pop_all()
    return relays


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


def _connect(topology: Topology, wire: Wire) -> Relay | None:
    def end(foot: Foot) -> End:
        return End(topology.namespace_path(foot.node), foot.ifname)

    by = None if topology.delay_by == "auto" else topology.delay_by
    return connect(end(wire.a), end(wire.b), wire.shape, by=by)


def _subnets(topology: Topology) -> dict[str, str]:
    """Name of a node at a router -> its subnet."""
    found = {CONTROLLER: topology.controller_subnet}
    if topology.storage is not None:
        found[topology.storage.name] = topology.storage.subnet
    return found | {site.name: site.subnet for site in topology.sites}


def _address_routers(topology: Topology) -> None:
    subnets, at = _subnets(topology), homes(topology)
    reached = [(subnet, at[node], str(node_address(subnet)), False) for node, subnet in subnets.items()]
    # users of one gateway are reached from the other through here
    reached += [(gateway.access_subnet, at[gateway.name], str(node_address(gateway.subnet)), True)
                for gateway in topology.gateways]  # fmt: skip
    for router in topology.router_names:
        ways = ways_from(topology, router)

        def router_side(router: str, ways: Mapping[str, Way]) -> None:
            with IPRoute() as ip:
                for node, subnet in subnets.items():
                    if at[node] == router:
                        _address(ip, node, f"{router_address(subnet)}/{_length(subnet)}")
                for foot, own in _transfers(topology):
                    if foot.node == router:
                        _address(ip, foot.ifname, f"{own}/30")
                for subnet, home, hop, behind in reached:
                    if home != router:
                        ip.route("add", dst=subnet, gateway=str(_next_hop(ways[home].first, router)))
                    elif behind:
                        ip.route("add", dst=subnet, gateway=hop)

        _inside(topology, router, partial(router_side, router, ways))


def _transfers(topology: Topology) -> list[tuple[Foot, IPv4Address]]:
    """The routers' ends towards each other, with their addresses."""
    return [pair for wire in wires(topology) if wire.transfer
            for pair in zip((wire.a, wire.b), wire.transfer, strict=True)]  # fmt: skip


def _next_hop(wire: Wire | None, router: str) -> IPv4Address:
    assert wire is not None
    assert wire.transfer is not None
    return wire.transfer[1] if wire.a.node == router else wire.transfer[0]


def _address_nodes(topology: Topology) -> None:
    for name, subnet in _subnets(topology).items():

        def node_side(subnet: str = subnet) -> None:
            with IPRoute() as ip:
                _address(ip, UPLINK, f"{node_address(subnet)}/{_length(subnet)}")
                ip.route("add", dst="default", gateway=str(router_address(subnet)))

        _inside(topology, name, node_side)


def _address_user(topology: Topology, user: User) -> None:
    for place, name in enumerate(user.attached):
        gateway = topology.gateway(name)
        address, hop = str(topology.user_address(user, gateway)), str(router_address(gateway.access_subnet))

        def gateway_side(hop: str = hop, address: str = address) -> None:
            with IPRoute() as ip:
                index = _address(ip, user.name, f"{hop}/32")
                ip.route("add", dst=f"{address}/32", oif=index, scope="link")

        def user_side(name: str = name, hop: str = hop, address: str = address, place: int = place) -> None:
            with IPRoute() as ip:
                index = _address(ip, name, f"{address}/32")
                ip.route("add", dst=f"{hop}/32", oif=index, scope="link", prefsrc=address)
                if place == 0:
                    ip.route("add", dst="default", gateway=hop, prefsrc=address)
                else:  # standing by: used by whoever binds to this address
                    table = STANDBY_TABLE + place
                    ip.route("add", dst="default", gateway=hop, oif=index, prefsrc=address, table=table)
                    ip.rule("add", src=address, src_len=32, table=table, priority=1000 + place)

        _inside(topology, name, gateway_side)
        _inside(topology, user.name, user_side)


def _introduce(topology: Topology, wire: Wire) -> None:
    """Both ends know each other from the beginning: over a slow link the first packets would wait for the answer to
    who has the address, and a burst of them be lost."""
    addresses = wire.transfer or _ends_addresses(topology, wire)
    feet = (wire.a, wire.b)
    macs = []
    for foot in feet:

        def mac(ifname: str = foot.ifname) -> str:
            with IPRoute() as ip:
                return str(ip.get_links(ip.link_lookup(ifname=ifname)[0])[0].get_attr("IFLA_ADDRESS"))

        macs.append(netns.call(topology.namespace_path(foot.node), mac))
    for foot, address, other in zip(feet, addresses[::-1], macs[::-1], strict=True):

        def know(ifname: str = foot.ifname, address: IPv4Address = address, other: str = other) -> None:
            with IPRoute() as ip:
                index = ip.link_lookup(ifname=ifname)[0]
                ip.neigh("replace", ifindex=index, dst=str(address), lladdr=other, state=NUD_PERMANENT)

        _inside(topology, foot.node, know)


def _ends_addresses(topology: Topology, wire: Wire) -> tuple[IPv4Address, IPv4Address]:
    if wire in user_wires(topology):
        gateway = topology.gateway(wire.a.node)
        user = next(user for user in topology.users if user.name == wire.b.node)
        return router_address(gateway.access_subnet), topology.user_address(user, gateway)
    subnet = _subnets(topology)[wire.b.node]
    return router_address(subnet), node_address(subnet)


def _address(ip: IPRoute, ifname: str, text: str) -> int:
    """Give the interface an address and switch it on; returns its index."""
    index = int(ip.link_lookup(ifname=ifname)[0])
    address, length = text.split("/")
    ip.addr("add", index=index, address=address, prefixlen=int(length))
    ip.link("set", index=index, state="up")
    return index


def _length(subnet: str) -> int:
    return int(subnet.split("/")[1])
