"""Images of other engines' containers, brought ahead: out of the engine here, over the agents' connection, into the
engine of the same kind there. Nothing is written down on the way, and no more than some pieces are kept."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from whimbrel.agent.guests import Guests
from whimbrel.model.errors import Refused, StepFailed
from whimbrel.model.service import EngineKind
from whimbrel.model.units import format_bytes
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, Handler, Peer

SILENCE_S = 30.0
LOADED_WITHIN_S = 600.0
Tell = Callable[[str], object]


@dataclass
class _Transfer:
    """`None` ends it."""

    task: asyncio.Task[None]
    pieces: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(4))


class GuestImages:
    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self._transfers: dict[str, _Transfer] = {}

    def handlers(self) -> dict[type[calls.Call], Handler]:
        return {calls.TakeGuestImage: self._on_take, calls.GuestImagePiece: self._on_piece}

    # --- source -------------------------------------------------------------------------------------------
    async def push(self, kind: EngineKind, description: bytes, peer: Peer, bandwidth_bps: float, tell: Tell) -> int:
        """Returns how many bytes left this node, 0 when the image is there. Raises what either engine says."""
        transfer = await peer.call(calls.TakeGuestImage(engine=kind, description=description))
        if not transfer:
            return 0
        sent_bytes, start_s = 0, time.monotonic()
        async for piece in self._guests.engine(kind).image_out(description):
            await peer.call(calls.GuestImagePiece(transfer=transfer, data=piece), timeout_s=LOADED_WITHIN_S)
            sent_bytes += len(piece)
            tell(f"image: {format_bytes(sent_bytes)} brought")
            if bandwidth_bps > 0:
                await asyncio.sleep(max(0.0, start_s + sent_bytes * 8 / bandwidth_bps - time.monotonic()))
        await peer.call(calls.GuestImagePiece(transfer=transfer, data=b"", last=True), timeout_s=LOADED_WITHIN_S)
        return sent_bytes

    # --- destination --------------------------------------------------------------------------------------
    async def _on_take(self, call: calls.TakeGuestImage, _: EmitEvent) -> str:
        engine = self._guests.engine(call.engine)
        if await engine.has_image(call.description):
            return ""
        name = secrets.token_hex(16)
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue(4)
        task = asyncio.create_task(engine.image_in(call.description, _until_none(pieces)))
        self._transfers[name] = _Transfer(task, pieces)
        task.add_done_callback(lambda ended: self._ended(name, ended))
        return name

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """Whoever still brings pieces hears why; should nobody come any more, it is forgotten after a while."""
        _ = task.cancelled() or task.exception()
        asyncio.get_running_loop().call_later(SILENCE_S, self._transfers.pop, name, None)

    async def _on_piece(self, call: calls.GuestImagePiece, _: EmitEvent) -> bool:
        transfer = self._transfers.get(call.transfer)
        if transfer is None:
            raise Refused("no such image is on its way: begin anew")
        putting = asyncio.create_task(transfer.pieces.put(None if call.last else call.data))
        await asyncio.wait({putting, transfer.task}, return_when=asyncio.FIRST_COMPLETED)
        if call.last or transfer.task.done():
            putting.cancel()
            await transfer.task
        return True


async def _until_none(pieces: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                piece = await pieces.get()
        except TimeoutError:
            raise StepFailed("whoever brought an image went silent") from None
        if piece is None:
            return
        yield piece
