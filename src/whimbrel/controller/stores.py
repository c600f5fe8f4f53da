"""What nodes keep beside running services: volumes of services that are gone, and images. The agents are the truth."""

from __future__ import annotations

import asyncio
from typing import Any

from whimbrel.controller.problems import Unknown
from whimbrel.controller.region import Region
from whimbrel.controller.views import ImageList, ImagePush, VolumeList
from whimbrel.model.errors import BadInput, Unreachable
from whimbrel.wire.calls import ListImages, ListVolumes, PushImage, RemoveVolume

LIST_TIMEOUT_S = 30.0
PUSH_TIMEOUT_S = 3600.0


class Stores:
    """What `whimbrel volume …` and `whimbrel image …` ask for."""

    def __init__(self, region: Region) -> None:
        self._region = region

    async def volumes(self) -> VolumeList:
        found, unreachable = await self._of_all(ListVolumes())
        return VolumeList(volumes=found, unreachable=unreachable)

    async def remove_volume(self, service: str, name: str, node: str = "") -> None:
        """`node` is needed only when several nodes have one of that name. Raises Unknown, BadInput, Conflict."""
        listed = await self.volumes()
        homes = [one.node for one in listed.volumes if (one.service, one.name) == (service, name)]
        if node:
            homes = [home for home in homes if home == self._region.edge(node).name]
        if not homes:
            where = f" on {node}" if node else ""
            missing = f" ({', '.join(listed.unreachable)} did not answer)" if listed.unreachable else ""
            raise Unknown(f"there is no volume {service}/{name}{where}: see `whimbrel volume ls`{missing}")
        if len(homes) > 1:
            raise BadInput(f"there are volumes {service}/{name} on {', '.join(homes)}: name the one with --node")
        await self._region.peer(homes[0]).call(RemoveVolume(service=service, name=name), timeout_s=LIST_TIMEOUT_S)

    async def images(self) -> ImageList:
        found, unreachable = await self._of_all(ListImages())
        return ImageList(images=found, unreachable=unreachable)

    async def push_image(self, image: str, destination: str, source: str = "") -> ImagePush:
        """Bring an image, named by its digest (or the beginning of it) or by its reference, to another node.

        Raises Unknown, BadInput (several images of that name), and what the nodes say.
        """
        end = self._region.edge(destination)
        if source:
            self._region.edge(source)
        listed = await self.images()
        named = [one for one in listed.images if _is_meant(image, one.digest, one.reference)]
        digests = {one.digest for one in named}
        if not digests:
            raise Unknown(f"no node has an image {image!r}: see `whimbrel image ls`")
        if len(digests) > 1:
            raise BadInput(f"{image!r} may mean {len(digests)} images: name one by more of its digest")
        homes = [one.node for one in named if not source or one.node == source]
        (digest,) = digests
        if end.name in {one.node for one in named}:
            return ImagePush(digest=digest, source=end.name, destination=end.name, sent_bytes=0)
        if not homes:
            raise Unknown(f"{source} has no image {image!r}: {', '.join(one.node for one in named)} has")
        sent = await self._region.peer(homes[0]).call(
            PushImage(digest=digest, destination=end), timeout_s=PUSH_TIMEOUT_S
        )
        return ImagePush(digest=digest, source=homes[0], destination=end.name, sent_bytes=sent)

    async def _of_all(self, call: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        edges = [node.name for node in self._region.edges()]

        async def ask(node: str) -> tuple[Any, ...] | None:
            try:
                answer: tuple[Any, ...] = await self._region.peer(node).call(call, timeout_s=LIST_TIMEOUT_S)
            except Unreachable:
                return None
            return answer

        answers = await asyncio.gather(*(ask(node) for node in edges))
        found = tuple(one for answer in answers for one in answer or ())
        return found, tuple(node for node, answer in zip(edges, answers, strict=True) if answer is None)


def _is_meant(wanted: str, digest: str, reference: str) -> bool:
    if wanted == reference:
        return True
    bare = wanted.removeprefix("sha256:")
    return len(bare) >= 4 and digest.removeprefix("sha256:").startswith(bare)
