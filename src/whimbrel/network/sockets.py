"""Addresses that a container's sockets stand on, read from /proc/PID/net."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path

_TIME_WAIT, _CLOSE = 6, 7
_TABLES = ("tcp", "udp", "tcp6", "udp6")


def foreign_address(pid: int, own: str) -> str | None:
    """What a process's network namespace has open on an address other than `own`, "any" and loopback, as one phrase
    (``has a TCP socket on 172.17.0.2``), or None. Such a socket cannot be made where that address is not."""
    allowed = ipaddress.ip_address(own)
    for table in _TABLES:
        with contextlib.suppress(OSError):  # no IPv6 here, or the process is gone
            for address, state in _sockets(Path(f"/proc/{pid}/net/{table}")):
                if table.startswith("tcp") and state in (_TIME_WAIT, _CLOSE):
                    continue
                if address != allowed and not (address.is_unspecified or address.is_loopback):
                    return f"has a {table[:3].upper()} socket on {address}"
    return None


def _sockets(path: Path) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    for line in path.read_text().splitlines()[1:]:
        fields = line.split()
        words = fields[1].partition(":")[0]
        # the kernel prints each 32-bit word of the address in the host's byte order
        packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
        address = ipaddress.ip_address(packed)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        yield address, int(fields[3], 16)
