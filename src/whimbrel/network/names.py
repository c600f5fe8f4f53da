"""Names and addresses that every node derives alike, so that nobody has to be told."""

from __future__ import annotations

import ipaddress
import zlib

from whimbrel.model.errors import BadInput

BRIDGE = "wb0"
TUNNEL = "wbx0"
CONTAINER_INTERFACE = "eth0"
SECOND_INTERFACE = "whimbrel0"  # in a container that has an eth0 from its own engine
VNI = 77
VXLAN_PORT = 4789
NOBODYS, LAST_OF_NOBODYS = 0xF0000000, 0xFFFFFFFE
OVERLAY_MTU_BYTES = 1450  # an underlay of 1500 less the 50 of the tunnel header


def interface(text: str) -> ipaddress.IPv4Interface:
    """``10.77.1.1/16``; a bare address counts as /32. Raises BadInput."""
    try:
        return ipaddress.IPv4Interface(text)
    except ValueError as error:
        raise BadInput(f"{text!r} is not an IPv4 address with prefix length: write it like 10.77.1.1/16") from error


def mac_of(address: str) -> str:
    """The Ethernet address that belongs to an overlay address, on whatever node it stands."""
    return "02:77:" + ":".join(f"{byte:02x}" for byte in interface(address).ip.packed)


def stand_in(migration: str) -> str:
    """Under which address the gateways keep what they hold in a migration: one that nobody has (240.0.0.0/4 is
    reserved, RFC 1112 §4), and another one for each migration."""
    return str(ipaddress.IPv4Address(min(NOBODYS | zlib.crc32(migration.encode()) >> 4, LAST_OF_NOBODYS)))


def is_stand_in(address: str) -> bool:
    return int(ipaddress.IPv4Address(address)) >= NOBODYS


def mac_bytes(mac: str) -> bytes:
    try:
        value = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        value = b""
    if len(value) != 6:
        raise BadInput(f"{mac!r} is not an Ethernet address: write it like 02:77:0a:4d:01:01")
    return value


def port_name(service: str) -> str:
    """The host-side interface of a service (`wb` and 8 hex digits: an interface name holds 15 characters)."""
    return f"wb{zlib.crc32(service.encode()):08x}"
