"""Everything that can be known before anything is stopped: each refusal one line, with the way out."""

from __future__ import annotations

from whimbrel.model.errors import Refused
from whimbrel.model.node import Capabilities, Resources
from whimbrel.model.units import format_bytes
from whimbrel.wire.calls import OfferReply

MEMORY_RESERVE_BYTES = 64 << 20
DISK_RESERVE_BYTES = 64 << 20
STORE_FACTOR = 2.2  # arriving pages live twice for a moment: in the store and in the process; and rounds repeat


def compare(source: Capabilities, destination: Capabilities, where: str) -> None:
    """Raises Refused when a container that runs here could not run, or not be restored, there."""
    for what, ours, theirs in (
        ("machine type", source.machine, destination.machine),
        ("CRIU", source.criu, destination.criu),
        ("runc", source.runc, destination.runc),
        ("Whimbrel", source.whimbrel, destination.whimbrel),
    ):
        if ours != theirs:
            raise Refused(
                f"{what} differs: {ours} here, {theirs} on {where}; "
                + ("choose a node of the same type" if what == "machine type" else "install the same version on both")
            )
    missing = sorted(set(source.cpu_features) - set(destination.cpu_features))
    if missing:
        raise Refused(
            f"the CPU of {where} lacks {', '.join(missing[:6])}{' …' if len(missing) > 6 else ''}, which the service "
            "may be using; choose a node with at least the same CPU features"
        )


def check_room(rss_bytes: int, disk_bytes: int, resources: Resources, where: str) -> None:
    """Raises Refused when the destination is too small. `disk_bytes` is what its disk must take in."""
    needed = int(rss_bytes * STORE_FACTOR) + MEMORY_RESERVE_BYTES
    if needed > resources.memory_available_bytes:
        raise Refused(
            f"{where} has {format_bytes(resources.memory_available_bytes)} of memory free, the migration needs "
            f"{format_bytes(needed)} there; free memory or choose another node"
        )
    disk_bytes += DISK_RESERVE_BYTES
    if disk_bytes > resources.disk_available_bytes:
        raise Refused(
            f"{where} has {format_bytes(resources.disk_available_bytes)} of disk free, the migration needs "
            f"{format_bytes(disk_bytes)} there; free disk or choose another node"
        )


def check_offer(source: Capabilities, reply: OfferReply, *, rss_bytes: int, disk_bytes: int, where: str) -> None:
    compare(source, reply.capabilities, where)
    check_room(rss_bytes, disk_bytes, reply.resources, where)
