"""TAP devices with offloads, as one end of a link whose other end is a program (linux/if_tun.h).

With `IFF_VNET_HDR` each frame has a virtio header in front, so checksums stay unfinished and segments whole on the
way: the kernel would otherwise cut and sum every packet before we see it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from pyroute2 import IPRoute

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
# Packets between the kernel and the reader; the default of 500 is 6 ms of full packets at 1 Gbit/s
READ_QUEUE_PACKETS = 8192


def open_tap(ifname: str) -> int:
    """Make the device in the calling thread's namespace; it lives as long as the descriptor. Raises OSError."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", ifname.encode(), flags))
        fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
        with contextlib.suppress(OSError):  # a kernel before 6.2 cuts large UDP itself
            fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS | TUN_F_USO4 | TUN_F_USO6)
        with IPRoute() as ip:
            ip.link("set", index=ip.link_lookup(ifname=ifname)[0], txqlen=READ_QUEUE_PACKETS)
    except BaseException:
        os.close(fd)
        raise
    return fd
