"""The few netlink messages of the freeze path, on sockets that stay open.

Set-up goes through pyroute2. Between hold and announce every 0.1 ms counts, and pyroute2's sockets are tied
to the thread and event loop that made them; a plain socket takes 20-60 us a call and serves any thread.
Message forms: linux/rtnetlink.h, linux/neighbour.h, linux/if_bridge.h, linux/inet_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_ROUTE, NETLINK_SOCK_DIAG = 0, 4
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
NLMSG_ERROR, NLMSG_DONE, NLMSG_MIN_TYPE = 2, 3, 0x10
RTM_SETLINK, RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH, SOCK_DIAG_BY_FAMILY = 19, 28, 29, 30, 20
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK = 254, 0, 1, 4
HOST_BITS = 32
NLA_F_NESTED = 0x8000
IFLA_PROTINFO, IFLA_BRPORT_STATE = 12, 1
NDA_DST, NDA_LLADDR = 1, 2
NUD_INCOMPLETE, NUD_REACHABLE, NUD_PERMANENT = 0x01, 0x02, 0x80
BR_STATE_DISABLED, BR_STATE_FORWARDING = 0, 3
ALL_STATES_MASK = 0xFFFFFFFF
CONNECTED_MASK = 1 << 1 | 1 << 8  # ESTABLISHED, CLOSE_WAIT
INET_DIAG_INFO, DIAG_BYTES = 2, 72
IPV4_MAPPED = bytes(10) + b"\xff\xff"
# tcpi_snd_mss, tcpi_unacked, tcpi_bytes_acked of struct tcp_info, linux/tcp.h
_TCP_INFO = struct.Struct("=16xI4xI92xQ")
RECEIVE_TIMEOUT_S = 2.0


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


class NetlinkSocket:
    """A netlink socket in the namespace of the thread that makes it; usable from any thread afterwards."""

    def __init__(self, protocol: int) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._socket.settimeout(RECEIVE_TIMEOUT_S)

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Send one message, wait for its acknowledgement. Raises OSError with the kernel's errno."""
        with self._lock:
            for _ in self._exchange(kind, flags | NLM_F_ACK, body):
                pass

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All answers to a dump request, without their netlink header."""
        with self._lock:
            return list(self._exchange(kind, NLM_F_DUMP, body))

    def _exchange(self, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            data = self._socket.recv(1 << 18)
            at = 0
            while at + 16 <= len(data):
                length, answer, _, sequence, _ = struct.unpack_from("=IHHII", data, at)
                payload = data[at + 16 : at + length]
                at += (length + 3) & ~3
                if sequence != self._sequence:
                    continue  # late answer to a request that timed out
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    errno = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
                    if errno > 0:
                        raise OSError(errno, os.strerror(errno))
                    return
                if answer >= NLMSG_MIN_TYPE:
                    yield payload


def set_bridge_port_state(route: NetlinkSocket, ifindex: int, state: int) -> None:
    """Stop or start a bridge port without a carrier change (the kernel acts on those up to 1 s late)."""
    body = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, ifindex, 0, 0)
    nested = attribute(IFLA_BRPORT_STATE, struct.pack("=B", state))
    route.request(RTM_SETLINK, 0, body + attribute(IFLA_PROTINFO | NLA_F_NESTED, nested))


def set_neighbour(route: NetlinkSocket, ifindex: int, address: str, state: int, mac: bytes | None = None) -> None:
    """Create or replace the neighbour entry of an IPv4 address."""
    body = struct.pack("=BxxxiHBB", socket.AF_INET, ifindex, state, 0, 0)
    body += attribute(NDA_DST, socket.inet_aton(address))
    if mac is not None:
        body += attribute(NDA_LLADDR, mac)
    route.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def remove_neighbour(route: NetlinkSocket, ifindex: int, address: str) -> None:
    body = struct.pack("=BxxxiHBB", socket.AF_INET, ifindex, 0, 0, 0)
    route.request(RTM_DELNEIGH, 0, body + attribute(NDA_DST, socket.inet_aton(address)))


def set_detour(route: NetlinkSocket, ifindex: int, address: str, hop: str, owner: int) -> None:
    """Packets for one IPv4 address go by the neighbour `hop` from now on. `owner`: who says so (rtm_protocol)."""
    body = _detour(address, owner) + attribute(RTA_GATEWAY, socket.inet_aton(hop))
    body += attribute(RTA_OIF, struct.pack("=i", ifindex))
    route.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def remove_detour(route: NetlinkSocket, address: str, owner: int) -> None:
    """Raises OSError (ESRCH) when there is none."""
    route.request(RTM_DELROUTE, 0, _detour(address, owner))


def _detour(address: str, owner: int) -> bytes:
    header = struct.pack(
        "=BBBBBBBBI", socket.AF_INET, HOST_BITS, 0, 0, RT_TABLE_MAIN, owner, RT_SCOPE_UNIVERSE, RTN_UNICAST,
        RTNH_F_ONLINK,
    )  # fmt: skip
    return header + attribute(RTA_DST, socket.inet_aton(address))


def detours(route: NetlinkSocket, ifindex: int, owner: int) -> dict[str, str]:
    """Address -> neighbour by which its packets go, of all that `owner` set for an interface."""
    found: dict[str, str] = {}
    for answer in route.dump(RTM_GETROUTE, struct.pack("=B11x", socket.AF_INET)):
        bits, said_by, values = answer[1], answer[5], attributes(answer[12:])
        if bits == HOST_BITS and said_by == owner and values.get(RTA_OIF) == struct.pack("=i", ifindex):
            found[socket.inet_ntoa(values[RTA_DST])] = socket.inet_ntoa(values[RTA_GATEWAY])
    return found


def neighbours(route: NetlinkSocket, ifindex: int) -> dict[str, int]:
    """IPv4 address -> state (NUD_…) of every neighbour entry of an interface."""
    found: dict[str, int] = {}
    for answer in route.dump(RTM_GETNEIGH, struct.pack("=BxxxiHBB", socket.AF_INET, 0, 0, 0, 0)):
        _, index, state, _, _ = struct.unpack_from("=BxxxiHBB", answer)
        destination = attributes(answer[12:]).get(NDA_DST)
        if index == ifindex and destination is not None:
            found[socket.inet_ntoa(destination)] = state
    return found


def _ipv4(family: int, address: bytes) -> str:
    """Of an address as inet_diag tells it, in 16 bytes; empty for any other."""
    if family == socket.AF_INET6:
        return socket.inet_ntoa(address[12:]) if address.startswith(IPV4_MAPPED) else ""
    return socket.inet_ntoa(address[:4])


class TcpConnection(NamedTuple):
    """IPv4 addresses with their ports; `segment_bytes`: of contents, so much goes into one; `acked_bytes`: since it was
    made."""

    source: tuple[str, int]
    destination: tuple[str, int]
    segment_bytes: int
    unacked_segments: int
    acked_bytes: int


def tcp_connections(diag: NetlinkSocket) -> list[TcpConnection]:
    """All established ones by IPv4, of IPv6 sockets too; half-closed ones count."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBxI48s", family, socket.IPPROTO_TCP, 1 << INET_DIAG_INFO - 1, CONNECTED_MASK, bytes(48))
        for answer in diag.dump(SOCK_DIAG_BY_FAMILY, body):
            # inet_diag_msg: family, state, timer, retrans (4), ports (4), addresses (16 each), …, 72 in all
            ports = struct.unpack_from("!HH", answer, 4)
            ends = [_ipv4(answer[0], answer[at : at + 16]) for at in (8, 24)]
            info = attributes(answer[DIAG_BYTES:]).get(INET_DIAG_INFO, b"")
            if answer[0] == family and all(ends) and len(info) >= _TCP_INFO.size:
                source, destination = zip(ends, ports, strict=True)
                found.append(TcpConnection(source, destination, *_TCP_INFO.unpack_from(info)))
    return found


def receive_queues(diag: NetlinkSocket, protocol: int) -> list[int]:
    """Receive queue lengths in bytes of all IPv4 and IPv6 sockets of `protocol`, one number a socket."""
    queues = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBxI48s", family, protocol, 0, ALL_STATES_MASK, bytes(48))
        # inet_diag_msg: family, state, timer, retrans (4), id (48), expires (4), rqueue (4), …
        answers = diag.dump(SOCK_DIAG_BY_FAMILY, body)
        queues += [struct.unpack_from("=I", answer, 56)[0] for answer in answers if answer[0] == family]
    return queues
