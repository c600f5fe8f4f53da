"""Datagrams that wait in a service's UDP sockets: CRIU carries the sockets, and leaves what is in them behind.

They are looked at where the service stands still, and stay there: who undoes the migration has lost nothing. At the
destination a raw socket in the service's network namespace sends each to the service's own address under the name of
its sender; the kernel delivers it as it did the first time, but that its interface is `lo`. IPv4 only.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from whimbrel.network import netns
from whimbrel.network.borrowed import Found, visit_udp_ports
from whimbrel.network.softnet import frames_waiting

SO_PEEK_OFF, IP_PKTINFO = 42, 8
MOST_BYTES = 65_535
ANCILLARY_BYTES = 1024  # the program may have asked for more than the destination: times, marks
MOST_ERRORS = 16
MAPPED = "::ffff:"
IP_HEADER, UDP_HEADER = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!HHHH")
IP_VERSION_AND_WORDS, TTL = 0x45, 64
AT_ONCE = 256  # a processor's backlog holds 1,000 frames
BACKLOG_WAIT_S = 0.005


class Datagram(msgspec.Struct, frozen=True, array_like=True):
    """IPv4 addresses with their ports."""

    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes


def unread(pids: Iterable[int]) -> list[Datagram]:
    """What waits in the sockets of these processes, which stand still, in each socket's order. Nothing is taken out.

    Left out is what came by IPv6, and empty datagrams, which the kernel does not show behind others nor twice. Needs
    ptrace rights; raises PermissionError.
    """
    found: list[Datagram] = []

    def look(_: Found, sock: socket.socket) -> None:
        found.extend(_peeked(sock))

    visit_udp_ports(pids, look)
    return found


def _peeked(sock: socket.socket) -> Iterator[Datagram]:
    """By the offset that SO_PEEK_OFF keeps; the socket's options are put back."""
    six = sock.family == socket.AF_INET6
    told = (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) if six else (socket.IPPROTO_IP, IP_PKTINFO)
    offset = (socket.SOL_SOCKET, SO_PEEK_OFF)
    former = [(option, sock.getsockopt(*option)) for option in (told, offset)]
    port, errors = sock.getsockname()[1], 0
    try:
        sock.setsockopt(*told, 1)
        sock.setsockopt(*offset, 0)
        while True:
            try:
                payload, ancillary, _, source = sock.recvmsg(
                    MOST_BYTES, ANCILLARY_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            except OSError:  # an ICMP answer to something it sent; those that wait come behind it
                errors += 1
                if errors > MOST_ERRORS:
                    return
                continue
            source_host, destination = _ipv4(source[0]), _ipv4(_destination(ancillary))
            if source_host and destination:
                yield Datagram((source_host, source[1]), (destination, port), payload)
    finally:
        for option, value in former:
            sock.setsockopt(*option, value)


def _destination(ancillary: Sequence[tuple[int, int, bytes]]) -> str:
    """The address it was sent to (in_pktinfo's last, in6_pktinfo's first field)."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            return socket.inet_ntoa(data[8:12])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return socket.inet_ntop(socket.AF_INET6, data[:16])
    return ""


def _ipv4(address: str) -> str:
    """Also of one that an IPv6 socket shows; empty for any other."""
    address = address.removeprefix(MAPPED)
    return "" if ":" in address else address


def deliver(namespace: Path, datagrams: Sequence[Datagram]) -> int:
    """Give them to the sockets in the network namespace at `namespace`; returns how many could be. Those for an address
    that is not there any more, or is not of one host, could not."""
    return netns.call(namespace, lambda: _deliver(datagrams))


def _deliver(datagrams: Sequence[Datagram]) -> int:
    delivered = 0
    stands_here = functools.cache(_is_ours)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for datagram in datagrams:
            host = datagram.destination[0]
            with contextlib.suppress(OSError):
                if stands_here(host):
                    raw.sendto(_packet(datagram), (host, 0))
                    delivered += 1
                    if delivered % AT_ONCE == 0:
                        let_the_kernel_catch_up()
    let_the_kernel_catch_up()
    return delivered


def _packet(datagram: Datagram) -> bytes:
    """RFC 768 in RFC 791; the kernel adds the header's sum, and without one of its own a datagram is not checked."""
    (source, source_port), (destination, port), payload = datagram.source, datagram.destination, datagram.payload
    size = UDP_HEADER.size + len(payload)
    header = IP_HEADER.pack(
        IP_VERSION_AND_WORDS, 0, IP_HEADER.size + size, 0, 0, TTL, socket.IPPROTO_UDP, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    )  # fmt: skip
    return header + UDP_HEADER.pack(source_port, port, size, 0) + payload


def _is_ours(host: str) -> bool:
    if ipaddress.IPv4Address(host).is_multicast:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            return False
    return True


def let_the_kernel_catch_up() -> None:
    """Until no frame is on its way through this host, or not for long."""
    until = time.monotonic() + BACKLOG_WAIT_S
    while frames_waiting() and time.monotonic() < until:
        time.sleep(0.0002)
