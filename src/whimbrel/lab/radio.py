"""The lab's radio: moves a user from one gateway to the next, as an air interface would.

A user has a cable to every gateway it is attached to; its radio decides by which of them something passes. It gets an
address of its own, on the overlay, that stays with it: the serving gateway answers questions for it (proxy ARP) and
routes it to the user, so a service's answers come straight to that gateway. What moves in a handover is this routing.

A link is shut by neighbour entries: packets are sent to an Ethernet address that nobody has. Taking an interface down
and up instead would cost up to a second, since the kernel acts on carrier changes that late. While the air is
interrupted, packets wait in the neighbour queues at both ends (as `network.hold` does it), or get that address too and
are lost."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import TypeVar

from pyroute2 import IPRoute, NetlinkError

from whimbrel.lab.topology import Gateway, Topology, User, node_address, router_address
from whimbrel.model.errors import BadInput, Conflict, Refused, StepFailed, WhimbrelError
from whimbrel.network import netlink
from whimbrel.network.announce import Announcer
from whimbrel.network.names import BRIDGE, mac_bytes, mac_of
from whimbrel.network.netns import Worker, write_sysctl
from whimbrel.network.overlay import explained, find_link
from whimbrel.ran.handover import HandoverRule, InFlight
from whimbrel.ran.port import HandedOver

NOBODY = mac_bytes("02:00:00:00:00:00")
QUEUE_BYTES = 16 << 20  # as the kernel counts it: some 20,000 small packets
REPEAT_AFTER_S = (0.02, 0.1, 0.5, 2.0)
NTF_PROXY = 0x08
MAIN_TABLE = 254
WAY_OUT = "is the lab up, and are you root?"

T = TypeVar("T")


def user_overlay_address(topology: Topology, user: User) -> IPv4Address:
    """The address that stays with a user wherever it goes: the first user has the overlay's last one, and so on down
    (services get theirs from the other end)."""
    return IPv4Network(topology.overlay_subnet)[-2 - topology.users.index(user)]


@dataclass(frozen=True)
class End:
    """One end of the link between a user and a gateway: interface number, and the other end's Ethernet address."""

    index: int
    peer_mac: bytes


class Node:
    """A namespace that the radio works in. `route` serves any thread; what goes through pyroute2 has a thread of its
    own here, since it is tied to the one that made it."""

    def __init__(self, topology: Topology, name: str) -> None:
        path = topology.namespace_path(name)
        if not path.exists():
            raise Refused(f"there is no network namespace {path.name}: bring the lab up first (`whimbrel lab up`)")
        self.name = name
        self.worker = Worker(path)
        self.route = self.worker(netlink.NetlinkSocket, netlink.NETLINK_ROUTE)

    def run(self, action: Callable[[IPRoute], T]) -> T:
        def inside() -> T:
            with IPRoute() as ip:
                return action(ip)

        return self.worker(inside)

    def close(self) -> None:
        self.route.close()
        self.worker.close()


class LabRadio:
    """The port `ran.port.Radio` for a lab that is up. Where a user is, is read from the lab itself, so several of these
    agree. Use as a context manager, or `close` it. `interruption_ms`: how long nothing passes in a handover."""

    def __init__(
        self,
        topology: Topology,
        *,
        interruption_ms: float | None = None,
        in_flight: InFlight | None = None,
    ) -> None:
        rule = topology.radio.handover if topology.radio is not None else None
        self._topology = topology
        usual_ms = rule.interruption_ms if rule else HandoverRule().interruption_ms
        self._interruption_ms = usual_ms if interruption_ms is None else interruption_ms
        self._in_flight = in_flight or (rule.in_flight if rule else InFlight.HOLD)
        self._nodes: dict[str, Node] = {}
        self._ready: dict[str, UserLinks] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> LabRadio:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Users stay where they are."""
        for node in self._nodes.values():
            node.close()
        for links in self._ready.values():
            links.close()
        self._nodes.clear()
        self._ready.clear()

    def address(self, user: str) -> str:
        """The user's own address."""
        return str(user_overlay_address(self._topology, self._user(user)))

    def serving(self, user: str) -> str:
        """The gateway by which the user's traffic goes."""
        return self._links(user).serving()

    def attach(self, user: str, target: str) -> None:
        """Be at `target` from now on, without interruption: how a user begins. Raises BadInput, Conflict, Refused."""
        links = self._links(user)
        self._check_target(links, target)
        with self._only(user), explained(f"attaching {user} to {target}", WAY_OUT):
            links.settle(target)

    def detach(self, user: str) -> None:
        """Out of coverage: nothing passes by any gateway."""
        links = self._links(user)
        with self._only(user), explained(f"detaching {user}", WAY_OUT):
            links.leave()

    def hand_over(self, user: str, target: str) -> HandedOver:
        """See `ran.port.Radio.hand_over`."""
        links = self._links(user)
        self._check_target(links, target)
        with self._only(user):
            source = links.serving()
            if source == target:
                raise BadInput(f"{user} is at {target} already: name another base station")
            try:
                begin_s, began_unix_s = time.monotonic(), time.time()
                links.interrupt(source, target, self._in_flight)
                time.sleep(max(0.0, begin_s + self._interruption_ms / 1000 - time.monotonic()))
                links.resume(target)
                interruption_ms = (time.monotonic() - begin_s) * 1000
            except (NetlinkError, OSError, WhimbrelError) as error:
                with contextlib.suppress(NetlinkError, OSError, WhimbrelError):
                    links.settle(source)
                raise StepFailed(f"handing {user} over to {target} failed ({error}): it is at {source}") from error
        return HandedOver(
            user=user, source=source, target=target, interruption_ms=interruption_ms, began_unix_s=began_unix_s
        )

    def _links(self, name: str) -> UserLinks:
        with self._lock:
            if name not in self._ready:
                user = self._user(name)
                with explained(f"preparing the radio of {name}", WAY_OUT):
                    gateways = {gateway: self._node(gateway) for gateway in user.attached}
                    routers = [self._node(router) for router in self._topology.router_names]
                    self._ready[name] = UserLinks(self._topology, user, self._node(name), gateways, routers)
            return self._ready[name]

    def _node(self, name: str) -> Node:
        if name not in self._nodes:
            self._nodes[name] = Node(self._topology, name)
        return self._nodes[name]

    def _user(self, name: str) -> User:
        for user in self._topology.users:
            if user.name == name:
                return user
        known = ", ".join(user.name for user in self._topology.users) or "none"
        raise BadInput(f"the lab has no user {name!r}, only {known}")

    @staticmethod
    def _check_target(links: UserLinks, target: str) -> None:
        if target not in links.gateways:
            raise BadInput(f"{links.user.name} has no link to {target!r}, only to {', '.join(links.gateways)}")

    @contextlib.contextmanager
    def _only(self, user: str) -> Iterator[None]:
        """One handover of a user at a time, whichever process asks. The lock is an abstract socket: no file stays."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
            try:
                lock.bind(f"\0whimbrel-radio-{self._topology.prefix}{user}")
            except OSError as error:
                raise Conflict(f"a handover of {user} is under way: wait until it is over") from error
            yield


class UserLinks:
    """One user's links and routes. Every method may be repeated. Raises what netlink raises."""

    def __init__(
        self, topology: Topology, user: User, here: Node, gateways: Mapping[str, Node], routers: Sequence[Node]
    ) -> None:
        self.user, self.gateways = user, gateways
        self._here, self._routers = here, routers
        self._places: dict[str, Gateway] = {name: topology.gateway(name) for name in gateways}
        self._address = str(user_overlay_address(topology, user))
        self._own = {name: str(topology.user_address(user, place)) for name, place in self._places.items()}
        self._hops = {name: str(router_address(place.access_subnet)) for name, place in self._places.items()}
        self._near, self._far, self._bridges = {}, {}, {}
        self._moved_on = threading.Event()
        self._repeating: threading.Thread | None = None
        macs_here = here.run(lambda ip: {name: _index_and_mac(ip, name) for name in gateways})
        for name, node in gateways.items():
            index, mac = node.run(lambda ip: _index_and_mac(ip, user.name))
            self._near[name] = End(macs_here[name][0], mac)
            self._far[name] = End(index, macs_here[name][1])
            self._bridges[name] = node.run(lambda ip: _index_and_mac(ip, BRIDGE)[0])
            node.worker(self._gateway_settings)
        here.worker(self._user_settings)

    def _gateway_settings(self) -> None:
        write_sysctl(f"net/ipv4/neigh/{self.user.name}/unres_qlen_bytes", QUEUE_BYTES)
        write_sysctl(f"net/ipv4/neigh/{BRIDGE}/proxy_delay", 0)  # else a random one of up to 0.8 s
        # what comes late for a user who has left is sent on by the same interface: its sender need not be told
        write_sysctl("net/ipv4/conf/all/send_redirects", 0)

    def _user_settings(self) -> None:
        with IPRoute() as ip:
            ip.addr("replace", index=ip.link_lookup(ifname="lo")[0], address=self._address, prefixlen=32)
        for name in self.gateways:
            write_sysctl(f"net/ipv4/neigh/{name}/unres_qlen_bytes", QUEUE_BYTES)

    def serving(self) -> str:
        """Raises StepFailed when the user has no default route by any of its gateways."""
        indices = {end.index: name for name, end in self._near.items()}

        def look(ip: IPRoute) -> str | None:
            routes = [route for route in ip.get_routes(family=socket.AF_INET, table=MAIN_TABLE) if not route["dst_len"]]
            return next((indices[oif] for route in routes if (oif := route.get_attr("RTA_OIF")) in indices), None)

        found = self._here.run(look)
        if found is None:
            raise StepFailed(f"{self.user.name} has no default route by any gateway: take the lab down and up again")
        return found

    def settle(self, target: str) -> None:
        """At `target`, and nowhere else."""
        self._open(target)
        self._take_over(target)
        self._lead_user(target)
        for name in self.gateways:
            if name != target:
                self._give_up(name, target)
                self._shut(name)
        self._announce(target)

    def leave(self) -> None:
        """Nowhere."""
        for name in self.gateways:
            self._shut(name)

    def interrupt(self, source: str, target: str, in_flight: InFlight) -> None:
        """From the return on nothing passes between the user and anybody."""
        if in_flight is InFlight.HOLD:
            self._set(target, netlink.NUD_INCOMPLETE, None, None)
        else:
            self._set(target, netlink.NUD_PERMANENT, NOBODY, NOBODY)
        # in this order no packet falls between two stools: what was sent before passes, what comes after waits
        self._lead_user(target)
        self._take_over(target)
        self._give_up(source, target)
        self._shut(source)
        self._announce(target)

    def resume(self, target: str) -> None:
        """What waited leaves, and all that follows."""
        self._open(target)

    def _lead_user(self, name: str) -> None:
        hop, index = self._hops[name], self._near[name].index
        self._here.run(lambda ip: ip.route("replace", dst="default", gateway=hop, oif=index, prefsrc=self._address))

    def _take_over(self, name: str) -> None:
        """The gateway leads the user's address to the user, and answers for it on the overlay."""
        index, bridge = self._far[name].index, self._bridges[name]

        def gateway_side(ip: IPRoute) -> None:
            ip.route("replace", dst=f"{self._address}/32", oif=index, scope="link")
            ip.neigh("replace", dst=self._address, ifindex=bridge, flags=NTF_PROXY)

        self.gateways[name].run(gateway_side)
        hop = str(node_address(self._places[name].subnet))
        for router in self._routers:
            router.run(lambda ip: _lead_like(ip, self._address, hop))

    def _give_up(self, name: str, target: str) -> None:
        """What still comes to this gateway for the user goes on to its new one, by the overlay."""
        index, bridge = self._far[name].index, self._bridges[name]
        mac = mac_bytes(mac_of(self._places[target].overlay_address))
        netlink.set_neighbour(self.gateways[name].route, bridge, self._address, netlink.NUD_REACHABLE, mac)

        def gateway_side(ip: IPRoute) -> None:
            with contextlib.suppress(NetlinkError):  # it had none
                ip.neigh("del", dst=self._address, ifindex=bridge, flags=NTF_PROXY)
            with contextlib.suppress(NetlinkError):
                ip.route("del", dst=f"{self._address}/32", oif=index, scope="link")

        self.gateways[name].run(gateway_side)

    def _announce(self, name: str) -> None:
        """Services learn by which gateway the user is now."""
        mac = mac_of(self._places[name].overlay_address)
        announcer = self.gateways[name].worker(Announcer, BRIDGE, self._address, mac)
        self.close()  # an announcement of where the user was must not come after this one
        announcer.send()
        self._moved_on = threading.Event()
        self._repeating = threading.Thread(
            target=_repeat, args=(announcer, self._moved_on), name="announce-user", daemon=True
        )
        self._repeating.start()

    def close(self) -> None:
        """Announce no more: from the return on nothing is sent."""
        self._moved_on.set()
        if self._repeating is not None:
            self._repeating.join()

    def _open(self, name: str) -> None:
        self._set(name, netlink.NUD_PERMANENT, self._near[name].peer_mac, self._far[name].peer_mac)

    def _shut(self, name: str) -> None:
        self._set(name, netlink.NUD_PERMANENT, NOBODY, NOBODY)

    def _set(self, name: str, state: int, gateway_mac: bytes | None, user_mac: bytes | None) -> None:
        """The neighbour entries at both ends of the link to a gateway."""
        far = self._far[name].index
        for address in (self._address, self._own[name]):
            netlink.set_neighbour(self.gateways[name].route, far, address, state, user_mac)
        netlink.set_neighbour(self._here.route, self._near[name].index, self._hops[name], state, gateway_mac)


def _index_and_mac(ip: IPRoute, ifname: str) -> tuple[int, bytes]:
    link = find_link(ip, ifname)
    if link is None:
        raise Refused(f"there is no interface {ifname} where the radio needs it: is the lab whole (`lab status`)?")
    return int(link["index"]), mac_bytes(str(link.get_attr("IFLA_ADDRESS")))


def _lead_like(ip: IPRoute, address: str, other: str) -> None:
    """Lead packets for an address by the way that those for another one take."""
    (way,) = ip.route("get", dst=other)
    ip.route("replace", dst=f"{address}/32", gateway=way.get_attr("RTA_GATEWAY") or other)


def _repeat(announcer: Announcer, moved_on: threading.Event) -> None:
    """In case the underlay loses one."""
    for delay_s in REPEAT_AFTER_S:
        if moved_on.wait(delay_s):
            break
        with contextlib.suppress(OSError):
            announcer.send(1)
    announcer.close()
