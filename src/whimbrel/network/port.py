"""A service's place on the overlay: its network namespace and its port on the node's bridge.

The port is made ahead of a migration while the same address still runs elsewhere, so until `open` nothing
may leave or enter it: the bridge port is disabled before the address is set inside, and no carrier ever
changes afterwards (the kernel acts on carrier changes up to 1 s late).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from whimbrel.model.connections import Connection
from whimbrel.model.errors import Refused
from whimbrel.network import netlink, netns, resend
from whimbrel.network.announce import Announcer
from whimbrel.network.names import (
    BRIDGE,
    CONTAINER_INTERFACE,
    OVERLAY_MTU_BYTES,
    SECOND_INTERFACE,
    interface,
    mac_bytes,
    mac_of,
    port_name,
)
from whimbrel.network.overlay import explained, find_link, wait_until

REPEAT_AFTER_S = (0.02, 0.1, 0.5, 2.0)
RELEASED_S = 0.5
"""By then a gateway's agent has let go what it held, if there is one."""
LONG_HOLD_S = 0.25
"""What gateways hold for longer may be more than a processor's backlog takes at once: 1,000 frames as a rule."""
MAIN_TABLE, OWN_TABLE = 254, 77  # routing tables in the container


@dataclass(frozen=True)
class PortInfo:
    netns_path: Path
    mac: str
    interface: str = CONTAINER_INTERFACE


@dataclass
class _Handles:
    """What the freeze path needs, opened ahead: none of it costs more than a system call or two."""

    ifindex: int
    announcer: Announcer
    diag: netlink.NetlinkSocket
    closed: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        self.closed.set()
        self.announcer.close()
        self.diag.close()


class ServicePort:
    """All ports of one node; `netns_dir` holds one file per service. `open`, `close`, `announce`,
    `receive_queue_bytes` take well under 1 ms. Make it, and call it, in the node's own namespace. `gateways`: overlay
    addresses of all gateways, whom services answer directly when they translate addresses."""

    def __init__(self, netns_dir: Path, gateways: Iterable[str] = ()) -> None:
        self._dir = netns_dir
        self._gateways = tuple(gateways)
        self._lock = threading.Lock()
        self._handles: dict[str, _Handles] = {}
        self._route = netlink.NetlinkSocket(netlink.NETLINK_ROUTE)

    def path(self, service: str) -> Path:
        return self._dir / service

    def info(self, service: str) -> PortInfo:
        handles = self._ready(service)
        return PortInfo(self.path(service), handles.announcer.mac, handles.announcer.interface)

    def exists(self, service: str) -> bool:
        return self.path(service).exists()

    def create(
        self, service: str, address: str, gateway: str | None = None, *, inside: Path | None = None, name: str = ""
    ) -> PortInfo:
        """Make namespace and port, disabled. `address` with prefix length; `gateway` is the overlay address
        of a Whimbrel gateway. Leaves nothing behind when it fails (Refused, Conflict, BadInput).

        `inside`: an existing namespace (``/proc/PID/ns/net``) to plug the port into; what is in there stays as it is.
        `name` is the interface's in there, chosen when empty.
        """
        interface(address), mac_of(gateway or address)
        path, host = self.path(service), port_name(service)
        with IPRoute() as ip:
            if find_link(ip, host) is not None:
                raise Refused(f"the port {host} of {service} is there already: remove the service here first")
        if inside is None:
            netns.create(path)
            netns.call(path, _no_ipv6)
        else:
            netns.keep(path, inside)
        try:
            with explained(f"making the network port of {service}", "see `whimbrel check`"):
                name = name or netns.call(path, _free_name)
                self._attach(service, path, name, mac_of(address))
                netns.call(path, lambda: _set_address(name, address, gateway, self._gateways))
            return self.info(service)
        except BaseException:
            self.remove(service)
            raise

    def _attach(self, service: str, path: Path, name: str, mac: str) -> None:
        host = port_name(service)
        with IPRoute() as ip, path.open() as inside:
            bridge = next(iter(ip.link_lookup(ifname=BRIDGE)), None)
            if bridge is None:
                raise Refused(f"this node has no bridge {BRIDGE}: its overlay is not up, restart its agent")
            peer = {"ifname": name, "address": mac, "mtu": OVERLAY_MTU_BYTES,
                    "net_ns_fd": inside.fileno()}  # fmt: skip
            ip.link("add", ifname=host, kind="veth", mtu=OVERLAY_MTU_BYTES, peer=peer)
            index = ip.link_lookup(ifname=host)[0]
            netns.write_sysctl(f"net/ipv6/conf/{host}/disable_ipv6", 1)
            ip.link("set", index=index, state="up")
            netns.call(path, lambda: _links_up(name))

            def is_up() -> bool:
                link = find_link(ip, host)
                return link is not None and link.get_attr("IFLA_OPERSTATE") == "UP"

            # only now to the bridge: a carrier event afterwards would enable the port again
            if not wait_until(is_up):
                raise Refused(f"the port {host} of {service} does not come up")
            ip.link("set", index=index, master=bridge)
            netlink.set_bridge_port_state(self._route, index, netlink.BR_STATE_DISABLED)

    def _ready(self, service: str) -> _Handles:
        """The open sockets of a service; after an agent's restart they are opened anew."""
        with self._lock:
            handles = self._handles.get(service)
            if handles is None:
                if not self.exists(service):
                    raise Refused(f"{service} has no network port on this node")
                index = socket.if_nametoindex(port_name(service))
                announcer, diag = netns.call(self.path(service), _open_inside)
                handles = self._handles[service] = _Handles(index, announcer, diag)
            return handles

    def _set_state(self, service: str, state: int) -> None:
        with explained(f"switching the network port of {service}", "is the service still on this node?"):
            netlink.set_bridge_port_state(self._route, self._ready(service).ifindex, state)

    def open(self, service: str) -> None:
        """From now on frames pass."""
        self._set_state(service, netlink.BR_STATE_FORWARDING)

    def close(self, service: str) -> None:
        """From now on nothing enters or leaves; the service's kernel sockets acknowledge nothing more."""
        self._set_state(service, netlink.BR_STATE_DISABLED)

    def announce(self, service: str, stand_in: str = "", *, held_s: float = 0.0) -> threading.Thread:
        """Say at once where the address is, and the `stand_in` of a migration: what gateways hold leaves. Then again
        for 3 s, in case the underlay loses a frame (a repeat after the port closed goes nowhere): by the thread that is
        returned, which ends with its process.

        What leaves by an announcement does so in one go, inside the kernel's work on that frame; where links are
        virtual all that it has no room for is dropped. So what was `held_s` for long is left to the gateways' agents,
        by whom it leaves packet by packet, and announced later, should there be none."""
        handles, first_s = self._ready(service), 0.0 if held_s < LONG_HOLD_S else RELEASED_S
        with explained(f"announcing the address of {service}", "is the service still on this node?"):
            handles.announcer.send(also="" if first_s else stand_in)
        repeating = threading.Thread(target=_repeat, args=(handles, stand_in, first_s), name="announce", daemon=True)
        repeating.start()
        return repeating

    def receive_queue_bytes(self, service: str) -> int:
        """What waits in the UDP sockets' receive queues (buffer size, as the kernel counts it)."""
        with explained(f"reading the socket queues of {service}", "is the service still on this node?"):
            return sum(netlink.receive_queues(self._ready(service).diag, socket.IPPROTO_UDP))

    def silent(self, service: str) -> dict[Connection, int]:
        """Its TCP connections whose peers have acknowledged nothing since they were made, or restored, and are to; how
        many bytes go into one segment of each."""
        with explained(f"reading the connections of {service}", "is the service still on this node?"):
            return resend.silent(self._ready(service).diag)

    def remove(self, service: str) -> None:
        """Remove port and namespace, whatever of them exists."""
        with self._lock:
            handles = self._handles.pop(service, None)
        if handles is not None:
            handles.close()
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=port_name(service)):
                with contextlib.suppress(NetlinkError):
                    ip.link("del", index=index)
        netns.remove(self.path(service))


def _repeat(handles: _Handles, stand_in: str, first_s: float) -> None:
    """From `first_s` after the first announcement on with the stand-in."""
    since_s = 0.0
    for delay_s in REPEAT_AFTER_S:
        since_s += delay_s
        if handles.closed.wait(delay_s):
            return
        with contextlib.suppress(OSError):
            handles.announcer.send(1, also="" if since_s < first_s else stand_in)


def _no_ipv6() -> None:
    for scope in ("all", "default"):
        netns.write_sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 1)


def _free_name() -> str:
    with IPRoute() as ip:
        return SECOND_INTERFACE if find_link(ip, CONTAINER_INTERFACE) is not None else CONTAINER_INTERFACE


def _links_up(name: str) -> None:
    netns.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", 1)
    with IPRoute() as ip:
        for link in ("lo", name):
            ip.link("set", index=ip.link_lookup(ifname=link)[0], state="up")


def _set_address(name: str, address: str, gateway: str | None, gateways: Iterable[str]) -> None:
    own = interface(address)
    # A restored service asks for hosts of the overlay (users, see `lab.radio`) while its port is still shut: a question
    # is repeated every 20 ms, for a second as usual, and not after a whole one.
    netns.write_sysctl(f"net/ipv4/neigh/{name}/retrans_time_ms", 20)
    netns.write_sysctl(f"net/ipv4/neigh/{name}/mcast_solicit", 50)
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=name)[0]
        ip.addr("add", index=index, address=str(own.ip), prefixlen=own.network.prefixlen)
    hops = {str(interface(each).ip) for each in (gateway, *gateways) if each}
    if hops:
        # fixed entries: the first answer after a move does not wait for a question to a gateway
        route = netlink.NetlinkSocket(netlink.NETLINK_ROUTE)
        for hop in hops:
            netlink.set_neighbour(route, index, hop, netlink.NUD_PERMANENT, mac_bytes(mac_of(hop)))
        route.close()
    if gateway:
        hop = str(interface(gateway).ip)
        with IPRoute() as ip:
            if any(route["dst_len"] == 0 for route in ip.get_routes(family=2, table=MAIN_TABLE)):
                # The container's own engine leads its traffic elsewhere. What it answers to users, from its address
                # on the overlay, goes by the overlay all the same.
                ip.route("add", dst="default", gateway=hop, table=OWN_TABLE)
                ip.rule("add", src=str(own.ip), src_len=32, table=OWN_TABLE, priority=OWN_TABLE)
            else:
                ip.route("add", dst="default", gateway=hop)


def _open_inside() -> tuple[Announcer, netlink.NetlinkSocket]:
    with IPRoute() as ip:
        second = find_link(ip, SECOND_INTERFACE)
        link = second or find_link(ip, CONTAINER_INTERFACE)
        if link is None:
            raise Refused("the container has lost its port on the overlay")
        address = next(iter(ip.get_addr(index=link["index"], family=2))).get_attr("IFA_LOCAL")
    name = SECOND_INTERFACE if second is not None else CONTAINER_INTERFACE
    return Announcer(name, address, link.get_attr("IFLA_ADDRESS")), netlink.NetlinkSocket(netlink.NETLINK_SOCK_DIAG)
