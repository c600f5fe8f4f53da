"""The rate of one interface, and its delay where the kernel can: queueing disciplines at the sending end.

In the namespace of the calling thread. pyroute2's NetlinkError goes through: callers say what they were doing.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from whimbrel.model.link import LinkShape
from whimbrel.network import netns

BURST_MS = 1.0
LEAST_BURST_BYTES = 1 << 17  # a packet as the kernel hands it to a link that segments: 64 KiB, and room for the next
ROOT, CHILD = 0x10000, 0x20000
FIRST_CLASS = 0x10001
# What is on its way is counted in packets, by netem: 64 MiB of full ones, as the relay's bound
NETEM_LIMIT_PACKETS = 44_000


def has_netem() -> bool:
    """Tried in a throw-away namespace, where nothing can go wrong. Raises Refused without root."""
    place = Path(f"/run/netns/whimbrel-netem-{os.getpid()}")
    netns.create(place)
    try:
        return netns.call(place, _try_netem)
    finally:
        netns.remove(place)


def _try_netem() -> bool:
    with IPRoute() as ip:
        try:
            ip.tc("add", "netem", ip.link_lookup(ifname="lo")[0], ROOT, delay=1000)
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
                return False
            raise
    return True


def burst_bytes(rate_bps: float) -> int:
    """What may pass at once after a pause."""
    return max(LEAST_BURST_BYTES, int(rate_bps / 8 * BURST_MS / 1e3))


def set_rate(ifname: str, shape: LinkShape, *, netem: bool = False) -> None:
    """Rate and queue, and with `netem` the delay too. What was set before is replaced; a plain shape takes it away."""
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=ifname)[0]
        _clear(ip, index)
        parent = {}
        if netem and shape.delay_ms:
            ip.tc("add", "netem", index, ROOT, delay=int(shape.delay_ms * 1e3), limit=NETEM_LIMIT_PACKETS)
            # as its child: the rate counts what comes out of the delay, which bounds the queue all the same
            parent = {"parent": FIRST_CLASS}
        if shape.rate_bps:
            rate, burst, limit = int(shape.rate_bps / 8), burst_bytes(shape.rate_bps), shape.queue_limit_bytes
            ip.tc("add", "tbf", index, CHILD if parent else ROOT, rate=rate, burst=burst, limit=limit, **parent)


def _clear(ip: IPRoute, index: int) -> None:
    try:
        ip.tc("del", index=index, parent=0xFFFFFFFF)
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.EINVAL):  # there was none
            raise
