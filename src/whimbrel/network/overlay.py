"""The node's bridge `wb0` and its VXLAN tunnel `wbx0`: one layer 2 across all nodes (RFC 7348).

Broadcast is replicated at the sender, one copy to each peer (all-zero forwarding entries), so no multicast
is needed in the underlay; where an address stands is learned from the frames themselves.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from whimbrel.model.errors import Refused
from whimbrel.model.node import Endpoint
from whimbrel.network.names import BRIDGE, OVERLAY_MTU_BYTES, TUNNEL, VNI, VXLAN_PORT, interface, mac_of
from whimbrel.network.netns import read_sysctl, write_sysctl

ALL_ZERO_MAC = "00:00:00:00:00:00"


@contextlib.contextmanager
def explained(what: str, way_out: str) -> Iterator[None]:
    """Turn a kernel refusal into one line that says what was tried and what to do."""
    try:
        yield
    except NetlinkError as error:
        raise Refused(f"{what} failed ({error}): {way_out}") from error
    except OSError as error:
        raise Refused(f"{what} failed ({error.strerror or error}): {way_out}") from error


def find_link(ip: IPRoute, name: str) -> Any | None:
    """The link of that name, or None."""
    try:
        return next(iter(ip.link("get", ifname=name)), None)
    except NetlinkError:
        return None


def wait_until(condition: Callable[[], bool], timeout_s: float = 2.0, step_s: float = 0.001) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(step_s)
    return True


class Overlay:
    """`bridge_address` (``10.77.0.1/16``) makes the node a gateway: it then has a foot on the overlay.

    All methods act in the calling thread's namespace, are safe to repeat, and raise Refused or BadInput.
    """

    def __init__(self, local: Endpoint, bridge_address: str | None = None) -> None:
        self.local = local
        self.bridge_address = interface(bridge_address) if bridge_address else None

    def up(self) -> None:
        """Make bridge and tunnel, or put right what is there; services' ports on the bridge stay."""
        what, way_out = (
            f"setting up the overlay on {self.local.name}",
            "run the agent as root, see `whimbrel check`",
        )
        with explained(what, way_out), IPRoute() as ip:
            self._check_local_address(ip)
            self._bridge_up(ip)
            self._tunnel_up(ip)
            if not wait_until(lambda: _is_up(find_link(ip, TUNNEL))):
                raise Refused(f"the tunnel {TUNNEL} on {self.local.name} does not come up: is its underlay?")

    def _check_local_address(self, ip: IPRoute) -> None:
        if not any(a.get_attr("IFA_LOCAL") == self.local.overlay_host for a in ip.get_addr(family=2)):
            raise Refused(
                f"overlay_host {self.local.overlay_host} is not an address of {self.local.name}: "
                "set it to the address by which the other nodes reach this one"
            )
        if self.bridge_address is not None and read_sysctl("net/ipv4/ip_forward") != "1":
            raise Refused(f"the gateway {self.local.name} does not forward: run `sysctl net.ipv4.ip_forward=1`")

    def _bridge_up(self, ip: IPRoute) -> None:
        if find_link(ip, BRIDGE) is None:
            ip.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_forward_delay=0, br_mcast_snooping=0)
        index = ip.link_lookup(ifname=BRIDGE)[0]
        write_sysctl(f"net/ipv6/conf/{BRIDGE}/disable_ipv6", 1)
        if self.bridge_address is None:
            ip.link("set", index=index, state="up", mtu=OVERLAY_MTU_BYTES)
            return
        # a known Ethernet address: services hold a fixed entry for their gateway and never have to ask for it
        ip.link("set", index=index, state="up", mtu=OVERLAY_MTU_BYTES, address=mac_of(str(self.bridge_address)))
        # users of the other gateway are reached through the same interface; services need not know
        write_sysctl(f"net/ipv4/conf/{BRIDGE}/send_redirects", 0)
        ip.addr(
            "replace",
            index=index,
            address=str(self.bridge_address.ip),
            prefixlen=self.bridge_address.network.prefixlen,
        )

    def _tunnel_up(self, ip: IPRoute) -> None:
        link = find_link(ip, TUNNEL)
        if link is not None and not self._is_ours(link):
            ip.link("del", index=link["index"])
            link = None
        if link is None:
            ip.link("add", ifname=TUNNEL, kind="vxlan", vxlan_id=VNI, vxlan_local=self.local.overlay_host,
                    vxlan_port=VXLAN_PORT, vxlan_learning=1)  # fmt: skip
        index = ip.link_lookup(ifname=TUNNEL)[0]
        write_sysctl(f"net/ipv6/conf/{TUNNEL}/disable_ipv6", 1)
        master = ip.link_lookup(ifname=BRIDGE)[0]
        ip.link("set", index=index, master=master, mtu=OVERLAY_MTU_BYTES, state="up")

    def _is_ours(self, link: Any) -> bool:
        data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
        return bool(
            data is not None
            and data.get_attr("IFLA_VXLAN_LOCAL") == self.local.overlay_host
            and data.get_attr("IFLA_VXLAN_ID") == VNI
            and data.get_attr("IFLA_VXLAN_PORT") == VXLAN_PORT
        )

    def set_peers(self, peers: Iterable[Endpoint]) -> None:
        """Join exactly these nodes (itself left out); forget the others and what was learned from them."""
        wanted = {peer.overlay_host for peer in peers if peer.name != self.local.name} - {self.local.overlay_host}
        with explained(f"joining {self.local.name} to its peers", "is the overlay up?"), IPRoute() as ip:
            index = next(iter(ip.link_lookup(ifname=TUNNEL)), None)
            if index is None:
                raise Refused(f"{self.local.name} has no tunnel {TUNNEL}: its overlay is not up, restart its agent")
            entries = [
                (entry.get_attr("NDA_LLADDR"), entry.get_attr("NDA_DST"))
                for entry in ip.fdb("dump", ifindex=index)
                if entry["ifindex"] == index and entry.get_attr("NDA_DST")
            ]
            joined = {destination for mac, destination in entries if mac == ALL_ZERO_MAC}
            for destination in sorted(wanted - joined):
                ip.fdb("append", ifindex=index, lladdr=ALL_ZERO_MAC, dst=destination)
            for mac, destination in entries:
                if destination not in wanted:
                    with contextlib.suppress(NetlinkError):  # a learned entry may have aged out meanwhile
                        ip.fdb("del", ifindex=index, lladdr=mac, dst=destination)

    def down(self) -> None:
        """Remove tunnel and bridge."""
        with explained(f"removing the overlay of {self.local.name}", "run as root"), IPRoute() as ip:
            for name in (TUNNEL, BRIDGE):
                for index in ip.link_lookup(ifname=name):
                    ip.link("del", index=index)


def _is_up(link: Any | None) -> bool:
    return link is not None and link.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN")
