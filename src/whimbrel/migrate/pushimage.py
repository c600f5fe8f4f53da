"""Bringing an image to another node ahead of a service: from the store of this node into the store of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from whimbrel.migrate.files import FileSync
from whimbrel.migrate.job import Migration
from whimbrel.migrate.nursery import Nursery
from whimbrel.migrate.sendfiles import CarriedFolder
from whimbrel.model.migration import Progress
from whimbrel.model.units import format_bytes
from whimbrel.storage.images import NODES_OWN, StoredImage
from whimbrel.wire.calls import ImageSlot, TakeImage
from whimbrel.wire.rpc import Peer

WAIT_S = 3600.0  # for the end of another node's transfer of the same image


@dataclass(frozen=True)
class Pushed:
    """`sent_bytes` 0: it was there already."""

    sent_bytes: int = 0


async def push_image(
    image: StoredImage,
    peer: Peer,
    host: str,
    tell: Callable[[str, float], object],
    nursery: Nursery,
    *,
    bandwidth_bps: float = 0.0,
) -> Pushed:
    """Nothing crosses when the image is there, can be unpacked there, or somebody else is bringing it just now (that
    is waited for). Checked at the destination; a broken transfer leaves nothing. Raises what the destination says.

    `tell` hears how far it is, as one line and a fraction.
    """
    loop = asyncio.get_running_loop()

    def progress(detail: str, fraction: float) -> None:
        loop.call_soon_threadsafe(tell, f"image: {detail}", fraction)

    def waiting(news: Progress) -> None:
        tell(news.detail, news.fraction)

    slot: ImageSlot = await peer.call(
        TakeImage(digest=image.digest, tree=image.tree, reference=image.reference, size_bytes=image.size_bytes),
        timeout_s=WAIT_S,
        on_event=waiting,
    )
    if not slot.port:
        return Pushed()
    tell(f"image: {format_bytes(image.size_bytes)} to bring", -1.0)
    folder = CarriedFolder(str(image.folder), without=NODES_OWN)
    sync = FileSync([folder], lambda: (), progress, nursery)

    def send() -> int:
        sync.start(host, slot.port, slot.token, bandwidth_bps)
        return sync.round()

    sending = asyncio.create_task(asyncio.to_thread(send))
    try:
        return Pushed(await asyncio.shield(sending))
    finally:
        sync.close()
        await asyncio.wait([sending])


async def bring_image(job: Migration, peer: Peer) -> None:
    """The destination gets the service's image unless it has it; another engine's out of the engine itself."""

    def tell(detail: str, fraction: float = -1.0) -> None:
        job.emit(Progress(migration=job.request.id, phase="prepare", detail=detail, fraction=fraction))

    if job.push_guest_image is not None:
        job.image_bytes = await job.push_guest_image(peer, tell)
    if job.source.image is None:
        return
    pushed = await push_image(
        job.source.image, peer, job.destination.host, tell, job.node.nursery, bandwidth_bps=job.request.bandwidth_bps
    )
    job.image_bytes = pushed.sent_bytes
