"""Holding packets at a gateway while a service is frozen.

Packets for the service are led to a neighbour that nobody is, the migration's stand-in. Its entry is put into the state
INCOMPLETE by hand: the kernel then queues every packet for it, and, since it did not begin to ask itself, it never asks
and never gives up: no retry timer. The destination announces the stand-in with the service's address (or `release`
tells where it is), and the queue leaves in order (a packet that arrives in that very instant may overtake it).

The service's own entry would not do: whatever ARP of the service comes by completes it. The source's kernel asks for
its neighbours until its port is shut, and announcements of an earlier move are repeated for seconds.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass

from whimbrel.model.errors import Refused
from whimbrel.network import netlink
from whimbrel.network.names import BRIDGE, interface, is_stand_in, mac_bytes, mac_of
from whimbrel.network.netns import read_sysctl, write_sysctl
from whimbrel.network.overlay import explained

SETTINGS = {
    # buffer size as the kernel counts it, about 768 per small datagram: some 20,000 of them
    "unres_qlen_bytes": 16 << 20,
    # A stand-in that was announced is nobody whom the kernel could ask whether he is still there, as it does after so
    # long; should this agent be dead then, who takes it out of the way.
    "delay_first_probe_time": 86_400,
}
LONGEST_HOLD_S = 60.0
LOOK_EVERY_S = 1.0
ROUTE_OWNER = 177  # rtm_protocol of our routes; below 192 is no other daemon's (linux/rtnetlink.h)


@dataclass
class _Hold:
    stand_in: str
    until_s: float


class HoldTable:
    """The held addresses of one gateway. Make it in the gateway's namespace, after its overlay is up;
    `hold` and `release` take a few netlink messages each, from any thread."""

    def __init__(self, ifname: str = BRIDGE, *, longest_hold_s: float = LONGEST_HOLD_S) -> None:
        self._ifname = ifname
        self._longest_s = longest_hold_s
        self._lock = threading.Lock()
        self._held: dict[str, _Hold] = {}
        self._timer: threading.Timer | None = None
        self._route = netlink.NetlinkSocket(netlink.NETLINK_ROUTE)
        try:
            self._ifindex = socket.if_nametoindex(ifname)
        except OSError as error:
            raise Refused(f"this gateway has no interface {ifname}: its overlay is not up") from error
        self._usual = {name: self._usual_value(name, ours) for name, ours in SETTINGS.items()}
        self._release_leftovers()

    def _usual_value(self, name: str, ours: int) -> str:
        value = read_sysctl(self._setting(name))
        if value == str(ours):  # an earlier agent's doing, who could not take it back
            value = read_sysctl(self._setting(name, "lo"))
            write_sysctl(self._setting(name), value)
        return value

    def _setting(self, name: str, ifname: str = "") -> str:
        return f"net/ipv4/neigh/{ifname or self._ifname}/{name}"

    def _release_leftovers(self) -> None:
        """What an earlier agent held and did not release would be held for ever."""
        for address, hop in netlink.detours(self._route, self._ifindex, ROUTE_OWNER).items():
            self._held[address] = _Hold(hop, until_s=0.0)
            self.release(address, mac_of(address))
        self._sweep()

    def _sweep(self) -> None:
        """Stand-ins of earlier holds are still in the kernel's table: some packet may have been on its way by them."""
        used = {hold.stand_in for hold in self._held.values()}
        for address in netlink.neighbours(self._route, self._ifindex):
            if is_stand_in(address) and address not in used:
                with contextlib.suppress(OSError):  # the kernel was faster
                    netlink.remove_neighbour(self._route, self._ifindex, address)

    def prepare(self, address: str) -> None:
        """Make room, ahead of the freeze; changes no traffic."""
        self._key(address)
        for name, value in SETTINGS.items():
            write_sysctl(self._setting(name), value)
        with self._lock:
            self._sweep()

    def hold(self, address: str, stand_in: str) -> None:
        """From the return on, packets for `address` wait. When nobody renews the hold for `longest_hold_s` they are let
        go unasked, so that a lost migration does not cut the service off for ever."""
        key = self._key(address)
        with explained(f"holding the packets for {key}", "is the overlay up?"), self._lock:
            earlier = self._held.get(key)
            # known before it is done: should a step fail, it is found and let go
            self._held[key] = _Hold(stand_in, time.monotonic() + self._longest_s)
            if self._timer is None:
                self._look_again()
            netlink.set_neighbour(self._route, self._ifindex, stand_in, netlink.NUD_INCOMPLETE)
            netlink.set_detour(self._route, self._ifindex, key, stand_in, ROUTE_OWNER)
            if earlier is not None and earlier.stand_in != stand_in:
                self._let_go(earlier.stand_in, mac_of(key))

    def renew(self, address: str) -> None:
        """Whoever asked for the hold still needs it. One that has ended is not taken up again: by now the packets may
        go to the service's new place."""
        with self._lock:
            hold = self._held.get(self._key(address))
            if hold is not None:
                hold.until_s = time.monotonic() + self._longest_s

    def release(self, address: str, mac: str, stand_in: str = "") -> None:
        """Send what waits to `mac`, and all that follows. Safe without a hold, and to repeat; a late one, of an earlier
        migration by its `stand_in`, does nothing."""
        key = self._key(address)
        with explained(f"releasing the packets for {key}", "is the overlay up?"), self._lock:
            hold = self._held.get(key)
            if not stand_in or hold is None or hold.stand_in == stand_in:
                self._release(key, mac)

    def _release(self, key: str, mac: str) -> None:
        hold = self._held.get(key)
        if hold is not None:
            self._let_go(hold.stand_in, mac)
        netlink.set_neighbour(self._route, self._ifindex, key, netlink.NUD_REACHABLE, mac_bytes(mac))
        if hold is not None:
            with contextlib.suppress(ProcessLookupError):  # ESRCH: somebody else removed it
                netlink.remove_detour(self._route, key, ROUTE_OWNER)
            del self._held[key]

    def _let_go(self, stand_in: str, mac: str) -> None:
        """Its entry stays for those packets that are on their way to it now."""
        netlink.set_neighbour(self._route, self._ifindex, stand_in, netlink.NUD_REACHABLE, mac_bytes(mac))

    def is_held(self, address: str) -> bool:
        """True while packets for `address` wait (an announcement ends that without our doing)."""
        hold = self._held.get(self._key(address))
        return hold is not None and self._waits(hold.stand_in)

    def _waits(self, stand_in: str) -> bool:
        return netlink.neighbours(self._route, self._ifindex).get(stand_in) == netlink.NUD_INCOMPLETE

    def restore(self) -> None:
        """Release what is held and give the settings their usual values again."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for key in list(self._held):
                with contextlib.suppress(OSError):  # the interface may be gone
                    self._release(key, mac_of(key))
            with contextlib.suppress(OSError):
                self._sweep()
        with contextlib.suppress(Refused):  # the interface may be gone: then so are its settings
            for name, value in self._usual.items():
                write_sysctl(self._setting(name), value)

    def _look_again(self) -> None:
        self._timer = threading.Timer(min(LOOK_EVERY_S, self._longest_s), self._look)
        self._timer.daemon = True
        self._timer.start()

    def _look(self) -> None:
        """End what was not renewed, and take away what an announcement has ended and nobody released."""
        with self._lock:
            self._timer = None
            for key, hold in list(self._held.items()):
                with contextlib.suppress(Refused, OSError):
                    if time.monotonic() >= hold.until_s or not self._waits(hold.stand_in):
                        self._release(key, mac_of(key))
            if self._held:
                self._look_again()

    @staticmethod
    def _key(address: str) -> str:
        return str(interface(address).ip)
