"""What a service had sent by TCP and nobody had acknowledged, sent once more from its new place.

A restored connection does not know how far away its peer is, so the kernel gives what is on its way a second before it
sends that again (RFC 6298, clause 2.1; the probe of RFC 8985, clause 7.2), and three where it must begin anew. Of an
answer that was lost in the last moments before the freeze, at a handover for instance, its reader would wait so long.
Here the same bytes go out by a raw socket, as the kernel would send them: who has them already drops them and says so,
and with the first acknowledgement the kernel goes on by itself. It takes the time since the restore for the round trip
then, as it does for any acknowledgement of what was on its way. IPv4 only, as the overlay; urgent data is sent as any
other.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator

from whimbrel.model.connections import Connection, Unacknowledged
from whimbrel.network.netlink import NetlinkSocket, tcp_connections

IP_HEADER, TCP_HEADER, STAMP = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!HHIIHHHH"), struct.Struct("!BBBBII")
PSEUDO_HEADER = struct.Struct("!4s4sBBH")
IP_VERSION_AND_WORDS, DONT_FRAGMENT, TTL = 0x45, 0x4000, 64
CHECKSUM_AT = 16
NOP, TIMESTAMPS, TIMESTAMPS_BYTES = 1, 8, 10
ACK, PSH = 0x10, 0x08
MOST_SEGMENTS = 10
"""At once: the initial window of a connection (RFC 6928)."""
LEAST_SEGMENT_BYTES = 36  # Linux takes no peer's word for less than 48, options included


def silent(diag: NetlinkSocket) -> dict[Connection, int]:
    """Which TCP connections wait for an acknowledgement and have had none since they were made, or restored, and how
    many bytes go into one segment of each. `diag`: in their network namespace."""
    return {
        Connection(each.source, each.destination): each.segment_bytes
        for each in tcp_connections(diag)
        if each.unacked_segments and not each.acked_bytes
    }


def send_again(
    connection: Connection, waiting: Unacknowledged, segment_bytes: int, age_s: float, *, most: int = MOST_SEGMENTS
) -> None:
    """In this network namespace, `most` segments at most; `age_s`: so long ago the connection's clock went on. Raises
    OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.bind((connection.source[0], 0))  # a rule may lead what comes from there by another route
        for packet in itertools.islice(segments(connection, waiting, segment_bytes, age_s), most):
            raw.sendto(packet, (connection.destination[0], 0))


def segments(connection: Connection, waiting: Unacknowledged, segment_bytes: int, age_s: float) -> Iterator[bytes]:
    """RFC 9293, clause 3.1 in RFC 791, with timestamps as in RFC 7323, clause 3.2; but what they should echo is in no
    image, so that is 0, which Linux takes for none. The kernel adds the sum of the outer header."""
    (source, source_port), (destination, port) = connection
    ends = socket.inet_aton(source), socket.inet_aton(destination)
    options = b""
    if waiting.stamp is not None:  # not newer than the kernel's own: what that sends next would count as old
        now = (waiting.stamp + int(age_s * waiting.stamps_per_s)) % (1 << 32)
        options = STAMP.pack(NOP, NOP, TIMESTAMPS, TIMESTAMPS_BYTES, now, 0)
    words_and_flags = (TCP_HEADER.size + len(options)) // 4 << 12 | ACK | PSH
    step, contents = max(segment_bytes, LEAST_SEGMENT_BYTES), waiting.contents
    for at in range(0, len(contents), step):
        number = (waiting.sequence + at) % (1 << 32)
        header = TCP_HEADER.pack(source_port, port, number, waiting.acknowledges, words_and_flags, waiting.window, 0, 0)
        segment = bytearray(header + options + contents[at : at + step])
        pseudo = PSEUDO_HEADER.pack(*ends, 0, socket.IPPROTO_TCP, len(segment))
        struct.pack_into("!H", segment, CHECKSUM_AT, _checksum(pseudo + segment))
        yield IP_HEADER.pack(
            IP_VERSION_AND_WORDS, 0, IP_HEADER.size + len(segment), 0, DONT_FRAGMENT, TTL, socket.IPPROTO_TCP, 0, *ends
        ) + segment  # fmt: skip


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    return ~(sum(words) % 0xFFFF) & 0xFFFF
