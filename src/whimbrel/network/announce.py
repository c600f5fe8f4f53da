"""Gratuitous ARP (RFC 826, RFC 5227 §3): says on the whole layer 2 where an address stands now.

One frame moves three things: the forwarding tables of all bridges and tunnels (by its source), and the
neighbour entries of hosts and gateways, which send there at once.
"""

from __future__ import annotations

import socket
import struct

from whimbrel.network.names import interface, mac_bytes

ETH_P_ARP = 0x0806
BROADCAST = b"\xff" * 6
REQUEST, REPLY = 1, 2


def arp_frames(address: str, mac: str) -> tuple[bytes, bytes]:
    """The announcement in both forms that implementations listen to: request, then reply."""
    ip, hardware = interface(address).ip.packed, mac_bytes(mac)
    ethernet = BROADCAST + hardware + struct.pack("!H", ETH_P_ARP)

    def frame(operation: int, target: bytes) -> bytes:
        return ethernet + struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, hardware, ip, target, ip)

    return frame(REQUEST, bytes(6)), frame(REPLY, BROADCAST)


class Announcer:
    """A packet socket in the namespace of the thread that makes it; usable from any thread afterwards."""

    def __init__(self, ifname: str, address: str, mac: str) -> None:
        self.mac = mac
        self.interface = ifname
        self._frames = arp_frames(address, mac)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((ifname, 0))

    def send(self, copies: int = 2, *, also: str = "") -> None:
        """`also`: another address that stands here now, said first."""
        frames = (*(arp_frames(also, self.mac) if also else ()), *self._frames)
        for _ in range(copies):
            for frame in frames:
                self._socket.send(frame)

    def close(self) -> None:
        self._socket.close()
