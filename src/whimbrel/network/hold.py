"""Holding packets at a gateway while a service is frozen.

The neighbour entry of the service's address is put into the state INCOMPLETE by hand. The kernel then queues
every packet for it, and, since it did not begin to ask itself, it never asks and never gives up: no retry
timer, and no question that the service's old place could answer while it drains. The announcement from the
new place (or `release`) completes the entry, and the queue leaves in order (a packet that arrives in that
very instant may overtake it).
"""

from __future__ import annotations

import contextlib
import socket
import threading

from whimbrel.model.errors import Refused
from whimbrel.network import netlink
from whimbrel.network.names import BRIDGE, interface, mac_bytes, mac_of
from whimbrel.network.netns import read_sysctl, write_sysctl
from whimbrel.network.overlay import explained

# buffer size as the kernel counts it, about 768 per small datagram: some 20,000 of them
QUEUE_BYTES = 16 << 20
LONGEST_HOLD_S = 60.0


def _queue_setting(ifname: str) -> str:
    return f"net/ipv4/neigh/{ifname}/unres_qlen_bytes"


class HoldTable:
    """The held addresses of one gateway. Make it in the gateway's namespace, after its overlay is up;
    `hold` and `release` take one netlink message each, from any thread."""

    def __init__(self, ifname: str = BRIDGE, *, longest_hold_s: float = LONGEST_HOLD_S) -> None:
        self._ifname = ifname
        self._longest_s = longest_hold_s
        self._lock = threading.Lock()
        self._held: dict[str, threading.Timer] = {}
        self._route = netlink.NetlinkSocket(netlink.NETLINK_ROUTE)
        try:
            self._ifindex = socket.if_nametoindex(ifname)
        except OSError as error:
            raise Refused(f"this gateway has no interface {ifname}: its overlay is not up") from error
        self._usual = read_sysctl(self._queue_setting)
        if self._usual == str(QUEUE_BYTES):  # an earlier agent's doing, who could not take it back
            self._usual = read_sysctl(_queue_setting("lo"))
            write_sysctl(self._queue_setting, self._usual)
        self._release_leftovers()

    def _release_leftovers(self) -> None:
        """What an earlier agent held and did not release would be held for ever."""
        for address, state in netlink.neighbours(self._route, self._ifindex).items():
            if state == netlink.NUD_INCOMPLETE:
                self.release(address, mac_of(address))

    @property
    def _queue_setting(self) -> str:
        return _queue_setting(self._ifname)

    def prepare(self, address: str) -> None:
        """Make room for `QUEUE_BYTES`, ahead of the freeze; changes no traffic."""
        self._key(address)
        write_sysctl(self._queue_setting, QUEUE_BYTES)

    def hold(self, address: str) -> None:
        """From the return on, packets for `address` wait. When nobody renews the hold for `longest_hold_s` they are let
        go unasked, so that a lost migration does not cut the service off for ever."""
        key = self._key(address)
        with explained(f"holding the packets for {key}", "is the overlay up?"):
            netlink.set_neighbour(self._route, self._ifindex, key, netlink.NUD_INCOMPLETE)
        self._start_timer(key)

    def renew(self, address: str) -> None:
        """Whoever asked for the hold still needs it. One that has ended is not taken up again: by now the packets may
        go to the service's new place."""
        key = self._key(address)
        if self.is_held(key):
            self._start_timer(key)

    def _start_timer(self, key: str) -> None:
        timer = threading.Timer(self._longest_s, self._expire, (key,))
        timer.daemon = True
        with self._lock:
            earlier, self._held[key] = self._held.get(key), timer
        if earlier is not None:
            earlier.cancel()
        timer.start()

    def release(self, address: str, mac: str) -> None:
        """Send what waits to `mac`, and all that follows. Safe without a hold, and to repeat."""
        key = self._key(address)
        with explained(f"releasing the packets for {key}", "is the overlay up?"):
            netlink.set_neighbour(self._route, self._ifindex, key, netlink.NUD_REACHABLE, mac_bytes(mac))
        with self._lock:
            timer = self._held.pop(key, None)
        if timer is not None:
            timer.cancel()

    def is_held(self, address: str) -> bool:
        """True while packets for `address` wait (an announcement ends that without our doing)."""
        state = netlink.neighbours(self._route, self._ifindex).get(self._key(address))
        return state == netlink.NUD_INCOMPLETE

    def restore(self) -> None:
        """Release what is held and give the queue its usual size again."""
        with self._lock:
            held = list(self._held)
        for address in held:
            if self.is_held(address):
                self.release(address, mac_of(address))
        with self._lock:
            for timer in self._held.values():
                timer.cancel()
            self._held.clear()
        with contextlib.suppress(Refused):  # the interface may be gone: then so is its setting
            write_sysctl(self._queue_setting, self._usual)

    def _expire(self, address: str) -> None:
        with contextlib.suppress(Refused, OSError):
            if self.is_held(address):
                self.release(address, mac_of(address))

    @staticmethod
    def _key(address: str) -> str:
        return str(interface(address).ip)
