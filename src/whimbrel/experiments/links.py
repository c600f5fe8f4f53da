"""The rate of the lab's links: a token bucket at both ends of every link between a site and the router."""

from __future__ import annotations

from pathlib import Path

from whimbrel.experiments.model import Link
from whimbrel.lab.commands import LabNode, LabStatus
from whimbrel.model.link import LinkShape
from whimbrel.network.shaping import End, reshape

UPLINK = "eth0"  # what a site calls its end; the router calls its own by the site's name
# The queue is that of a switch's port, so that bulk data holds up the packets of users no longer than it would there:
# 2 ms at 1 Gbit/s.
QUEUE_BYTES = 256 * 1024
SITES = ("edge", "gateway", "storage")


def shape(status: LabStatus, link: Link) -> None:
    """Set the rate of all sites' links, both ways. Raises Refused where the kernel cannot."""
    if not link.rate_bps:
        return
    router = next(node for node in status.nodes if node.role == "router")
    wanted = LinkShape(rate_bps=link.rate_bps, queue_bytes=QUEUE_BYTES)
    for site in (node for node in status.nodes if node.role in SITES):
        for node, interface in ((site, UPLINK), (router, site.name)):
            reshape(_end(node, interface), wanted)


def _end(node: LabNode, interface: str) -> End:
    return End(Path("/run/netns", node.namespace), interface)
