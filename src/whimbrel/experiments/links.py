"""The rate of the lab's links: a token bucket at both ends of every link between a site and the router."""

from __future__ import annotations

from pathlib import Path

from pyroute2 import IPRoute

from whimbrel.experiments.model import Link
from whimbrel.lab.commands import LabNode, LabStatus
from whimbrel.network import netns
from whimbrel.network.overlay import explained

UPLINK = "eth0"  # what a site calls its end; the router calls its own by the site's name
# At least one segment of 64 KB, which the kernel hands down whole. The queue is that of a switch's port, so that bulk
# data holds up the packets of users no longer than it would there: 2 ms at 1 Gbit/s.
BURST_BYTES = 128 * 1024
QUEUE_BYTES = 256 * 1024
SITES = ("edge", "gateway", "storage")


def shape(status: LabStatus, link: Link) -> None:
    """Set the rate of all sites' links, both ways. Raises Refused where the kernel cannot."""
    if not link.rate_bps:
        return
    router = next(node for node in status.nodes if node.role == "router")
    sites = [node for node in status.nodes if node.role in SITES]
    with explained("setting the rate of the lab's links", "the kernel needs the queueing discipline TBF (sch_tbf)"):
        for site in sites:
            _set_rate(site, UPLINK, link)
            _set_rate(router, site.name, link)


def _set_rate(node: LabNode, interface: str, link: Link) -> None:
    rate_bytes_per_s = int(link.rate_bps / 8)

    def act() -> None:
        with IPRoute() as ip:
            index = ip.link_lookup(ifname=interface)[0]
            ip.tc("replace", "tbf", index, 0x10000, rate=rate_bytes_per_s, burst=BURST_BYTES, limit=QUEUE_BYTES)

    netns.call(Path("/run/netns", node.namespace), act)
