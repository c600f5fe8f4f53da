"""Volumes that outlived their service, and images."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from whimbrel.controller.http.answers import AGENT, AGENTS, Body, answer_json, answers
from whimbrel.controller.stores import Stores
from whimbrel.controller.views import ImageList, ImagePush, VolumeList


class PushBody(Body):
    """`image`: its digest, the beginning of it, or its reference. An empty `source` means: any node that has it."""

    image: str = Field(min_length=1)
    destination: str
    source: str = ""


def store_routes(stores: Stores) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["stores"])

    @router.get("/volumes", **answers(VolumeList, errors=AGENTS))
    async def list_volumes() -> Response:
        """All volumes, and which nodes did not answer."""
        return answer_json(await stores.volumes())

    @router.delete("/volumes/{service}/{name}", **answers(None, 204, errors=(404, 409, *AGENT)))
    async def remove_volume(service: str, name: str, node: str = "") -> Response:
        """Remove a volume that outlived its service."""
        await stores.remove_volume(service, name, node)
        return Response(status_code=204)

    @router.get("/images", **answers(ImageList, errors=AGENTS))
    async def list_images() -> Response:
        """All images, and which nodes did not answer."""
        return answer_json(await stores.images())

    @router.post("/images/push", **answers(ImagePush, errors=(404, *AGENT)))
    async def push_image(body: PushBody) -> Response:
        """Bring an image to another node; answers when it is there."""
        return answer_json(await stores.push_image(body.image, body.destination, body.source))

    return router
