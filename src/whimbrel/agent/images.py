"""Images of one node: which there are, sending one to another node, and taking one from there, once at a time."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from typing import Any

import msgspec
import structlog

from whimbrel.agent.threads import in_thread
from whimbrel.migrate.nursery import Nursery
from whimbrel.migrate.preflight import DISK_RESERVE_BYTES
from whimbrel.migrate.pushimage import push_image
from whimbrel.migrate.takeimage import TakeOrder
from whimbrel.model.errors import BadInput, Refused, StepFailed
from whimbrel.model.migration import Progress
from whimbrel.model.service import ImageInfo
from whimbrel.model.units import format_bytes
from whimbrel.storage.images import ImageStore
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, Handler, Peer

log = structlog.get_logger()
START_S = 20.0


class Images:
    """`host`: where this node takes images from others."""

    def __init__(self, node: str, host: str, store: ImageStore, nursery: Nursery) -> None:
        self._node, self._host, self._store, self._nursery = node, host, store, nursery
        self._coming: dict[str, asyncio.Task[None]] = {}

    def handlers(self) -> dict[type[calls.Call], Handler]:
        return {calls.ListImages: self._on_list, calls.PushImage: self._on_push, calls.TakeImage: self._on_take}

    async def load(self) -> None:
        """Remove what transfers left that died with the last agent."""
        await in_thread(self._store.sweep)

    async def _on_list(self, _: calls.ListImages, emit: EmitEvent) -> tuple[ImageInfo, ...]:
        stored = await in_thread(self._store.all)
        return tuple(
            ImageInfo(digest=one.digest, node=self._node, reference=one.reference, size_bytes=one.size_bytes)
            for one in stored
        )

    async def _on_push(self, call: calls.PushImage, emit: EmitEvent) -> int:
        if call.destination.name == self._node:
            raise BadInput(f"the image is on {self._node} already: choose another node")
        image = await in_thread(self._store.stored, call.digest)
        end = call.destination

        def tell(detail: str, fraction: float) -> None:
            emit(Progress(migration="", phase="image", detail=detail, fraction=fraction))

        async with Peer(end.name, end.host, end.port) as peer:
            return (await push_image(image, peer, end.host, tell, self._nursery)).sent_bytes

    async def _on_take(self, call: calls.TakeImage, emit: EmitEvent) -> calls.ImageSlot:
        """A place for an image; whoever comes second waits for the first to end, and needs none if that went well."""
        told = False
        while not await in_thread(self._is_here, call):
            coming = self._coming.get(call.digest)
            if coming is None:
                return await self._begin(call)
            if not told:
                told = True
                detail = f"image: another node is bringing it to {self._node}, waiting for that"
                emit(Progress(migration="", phase="image", detail=detail))
            await asyncio.wait([coming])
        return calls.ImageSlot()

    def _is_here(self, call: calls.TakeImage) -> bool:
        return self._store.has(call.digest) or self._store.can_make(call.reference, call.digest)

    async def _begin(self, call: calls.TakeImage) -> calls.ImageSlot:
        root = self._store.root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        if call.size_bytes + DISK_RESERVE_BYTES > free:
            raise Refused(
                f"{self._node} has {format_bytes(free)} of disk free, the image needs "
                f"{format_bytes(call.size_bytes + DISK_RESERVE_BYTES)} there; free disk or choose another node"
            )
        token = secrets.token_hex(16)
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        order = TakeOrder(host=self._host, token=token, store=str(root), digest=call.digest, tree=call.tree)
        task = self._coming[call.digest] = asyncio.create_task(self._watch(order, listening))
        task.add_done_callback(lambda _: self._coming.pop(call.digest, None))
        try:
            async with asyncio.timeout(START_S):
                return calls.ImageSlot(port=await listening, token=token)
        except TimeoutError:
            task.cancel()
            raise StepFailed(f"the process that takes images on {self._node} did not start") from None

    async def _watch(self, order: TakeOrder, listening: asyncio.Future[int]) -> None:
        """The transfer, from start to end. It dies with this agent: its standard input ends then."""
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "whimbrel.migrate.takeimage",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True, cwd="/",
        )  # fmt: skip
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(msgspec.json.encode(order) + b"\n")
            async for line in worker.stdout:
                event: dict[str, Any] = msgspec.json.decode(line)
                kind = event.pop("event")
                if kind == "listening" and not listening.done():
                    listening.set_result(event["port"])
                log.info(f"image {kind}", digest=order.digest, **event)
        finally:
            worker.stdin.close()
            await asyncio.shield(worker.wait())
            if worker.returncode:  # it may have been killed in the middle
                await in_thread(self._store.forget_half, order.digest)
            if not listening.done():
                listening.set_exception(StepFailed(f"the process that takes images on {self._node} ended"))
