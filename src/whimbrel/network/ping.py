"""Round-trip times to several hosts at once, by ICMP echo (RFC 792): the other kernel answers, so it is the path
that is measured and no program's leisure. Both times are taken on this host, the second by its kernel as the answer
arrives."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterable

ECHO_REQUEST, ECHO_REPLY = 8, 0
SO_TIMESTAMPNS = 35
_HEADER = struct.Struct("!BBHHH")
_TIME = struct.Struct("!q")


def round_trips_ms(addresses: Iterable[str], *, timeout_s: float = 1.0) -> dict[str, float]:
    """IPv4 address -> ms, of those that answered in time. From the calling thread's namespace; needs CAP_NET_RAW
    (PermissionError). Blocks for `timeout_s` at most."""
    wanted = set(addresses)
    found: dict[str, float] = {}
    identity = int.from_bytes(os.urandom(2), "big")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        for address in wanted:
            with contextlib.suppress(OSError):  # no route to it: no answer either
                sock.sendto(_request(identity), (address, 0))
        deadline = time.monotonic() + timeout_s
        while len(found) < len(wanted) and (left_s := deadline - time.monotonic()) > 0:
            sock.settimeout(left_s)
            try:
                data, control, _, (address, _) = sock.recvmsg(256, 64)
            except TimeoutError:
                break
            sent_ns = _sent_ns(data, identity)
            if sent_ns is not None and address in wanted and control:
                seconds, nanoseconds = struct.unpack("=qq", control[0][2][:16])
                found.setdefault(address, max(0.0, (seconds * 10**9 + nanoseconds - sent_ns) / 1e6))
    return found


def _request(identity: int) -> bytes:
    body = _TIME.pack(time.time_ns())
    packet = _HEADER.pack(ECHO_REQUEST, 0, 0, identity, 1) + body
    return _HEADER.pack(ECHO_REQUEST, 0, _checksum(packet), identity, 1) + body


def _sent_ns(packet: bytes, identity: int) -> int | None:
    """When the request left that this answers; None for anything else that comes by."""
    start = (packet[0] & 15) * 4
    if len(packet) < start + _HEADER.size + _TIME.size:
        return None
    kind, _, _, number, _ = _HEADER.unpack_from(packet, start)
    if kind != ECHO_REPLY or number != identity:
        return None
    return int(_TIME.unpack_from(packet, start + _HEADER.size)[0])


def _checksum(data: bytes) -> int:
    """RFC 1071; of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
