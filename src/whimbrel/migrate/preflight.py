"""Everything that can be known before anything is stopped: each refusal one line, with the way out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from whimbrel.model.errors import Refused
from whimbrel.model.node import Capabilities, Resources
from whimbrel.model.units import format_bytes
from whimbrel.plan.means import Means
from whimbrel.storage.openfiles import Nameless
from whimbrel.wire.calls import OfferReply

MEMORY_RESERVE_BYTES = 64 << 20
DISK_RESERVE_BYTES = 64 << 20
NAMELESS_LIMIT_BYTES = 1 << 28
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


@dataclass(frozen=True)
class FileRoom:
    """What the files of a service take at the destination: on its disk, and in its memory (/dev/shm); and what the
    image takes on the disk, if it must cross too.

    `nameless_bytes` are of files that are open and have no name: they lie in CRIU's images, in the memory of both
    sides; a single one of more than `NAMELESS_LIMIT_BYTES` is `too_large`.
    """

    disk_bytes: int = 0
    memory_bytes: int = 0
    image_bytes: int = 0
    nameless_bytes: int = 0
    too_large: Nameless | None = None


def check_here(files: FileRoom) -> None:
    """Raises Refused when what the source itself must keep for a while is too much."""
    if files.too_large is not None:
        raise Refused(
            f"process {files.too_large.pid} holds the deleted file {files.too_large.path} of "
            f"{format_bytes(files.too_large.allocated_bytes)} open; more than {format_bytes(NAMELESS_LIMIT_BYTES)} "
            "cannot cross without a name: restart what holds it, or let it close it"
        )
    free = psutil.virtual_memory().available
    if files.nameless_bytes + MEMORY_RESERVE_BYTES > free:
        raise Refused(
            f"deleted files that are still open have {format_bytes(files.nameless_bytes)}, which cross by way of this "
            f"node's memory, and {format_bytes(free)} of it is free; free memory here"
        )


def check_room(rss_bytes: int, files: FileRoom, resources: Resources, where: str) -> None:
    """Raises Refused when the destination is too small."""
    disk_bytes = files.disk_bytes + files.image_bytes
    # Nameless files twice: as CRIU's images, and as what is restored of them.
    needed = int(rss_bytes * STORE_FACTOR) + files.memory_bytes + 2 * files.nameless_bytes + MEMORY_RESERVE_BYTES
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


def stage_room_bytes(run_dir: Path) -> int:
    """What can be staged in a node's tmpfs: it has room of its own, and takes memory."""
    return min(shutil.disk_usage(run_dir).free, max(0, psutil.virtual_memory().available - MEMORY_RESERVE_BYTES))


def means_of(source: Capabilities, run_dir: Path, reply: OfferReply) -> Means:
    """What this node and the destination have of what strategies need."""
    return Means(
        tracking=source.write_protect_tracking,
        soft_dirty=source.soft_dirty,
        rsync_here=source.rsync,
        rsync_there=reply.capabilities.rsync,
        lazy=reply.capabilities.lazy_pages,
        stage_here_bytes=stage_room_bytes(run_dir),
        stage_there_bytes=reply.resources.stage_available_bytes,
    )


def check_offer(source: Capabilities, reply: OfferReply, *, rss_bytes: int, files: FileRoom, where: str) -> None:
    compare(source, reply.capabilities, where)
    check_here(files)
    check_room(rss_bytes, files, reply.resources, where)
