"""Watches the node's shared file system: is it mounted, does it answer, which one is it?

The look is taken by a helper process again and again. One that does not come back makes the storage count as away, and
holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog
from msgspec.structs import replace

from whimbrel.agent.threads import in_thread
from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.model.node import Capabilities, SharedMount
from whimbrel.model.service import ServiceSpec
from whimbrel.storage.shared.helper import Helper
from whimbrel.storage.shared.place import SharedStorage

log = structlog.get_logger()
LOOK_EVERY_S = 5.0
LOOK_AGAIN_S = 0.5  # while it is away
ANSWER_S = 3.0


class SharedWatch:
    """`storage` is None on a node without; `mount` is what the last look found."""

    def __init__(self, node: str, directory: str = "") -> None:
        self._node = node
        self.storage = SharedStorage(Path(directory), node) if directory else None
        self.mount: SharedMount | None = None
        self._helper: Helper | None = None
        self._looking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns after the first look."""
        if self.storage is not None:
            await self.look()
            self._task = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._helper is not None:
            self._helper.close()
        if self.storage is not None:
            self.storage.close()

    # --- what of it others ask ------------------------------------------------------------------------------
    def added_to(self, capabilities: Capabilities) -> Capabilities:
        """A node's capabilities with what the last look found mounted."""
        mount = self.mount
        return replace(capabilities, shared=(mount.id,)) if mount is not None and not mount.problem else capabilities

    async def with_shared(self, capabilities: Capabilities) -> Capabilities:
        """The same after another look."""
        await self.look()
        return self.added_to(capabilities)

    async def require(self, wanted: str, spec: ServiceSpec) -> None:
        """Looks again. Raises Refused unless the storage `wanted`, where `spec`'s root is, is in working order here."""
        if problem := await self.problem_with(wanted):
            raise Refused(
                f"{problem}: choose a node that mounts the storage {wanted}, which {spec.name} lives on (see `whimbrel "
                "node ls`)"
            )

    async def problem_with(self, wanted: str) -> str:
        """Looks again. Why the storage `wanted` is not in working order here; empty when it is."""
        await self.look()
        if self.mount is None:
            return f"{self._node} mounts no shared storage"
        if self.mount.problem:
            return f"the shared storage of {self._node} is away ({self.mount.problem})"
        return "" if self.mount.id == wanted else f"{self._node} mounts another shared storage ({self.mount.id})"

    def require_roots(self) -> str:
        """The identity of the storage that a new service's root may live on. Raises Refused when there is none."""
        if self.mount is None:
            raise Refused(
                f"{self._node} has no shared file system: choose a node that has one (see `whimbrel node ls`), leave "
                "--shared out, or set shared_directory in its agent.toml (docs/shared-storage.md)"
            )
        problem = self.mount.problem or self.mount.roots_problem
        if problem:
            raise Refused(f"no root file system can live on the shared storage of {self._node}: {problem}")
        return self.mount.id

    # --- looking ----------------------------------------------------------------------------------------------
    async def _keep_looking(self) -> None:
        swept = False
        while True:
            if not swept and self.storage is not None and self.mount is not None and not self.mount.problem:
                with contextlib.suppress(WhimbrelError, OSError):
                    await in_thread(self.storage.sweep)
                    swept = True
            well = self.mount is not None and not self.mount.problem
            await asyncio.sleep(LOOK_EVERY_S if well else LOOK_AGAIN_S)
            await self.look()

    async def look(self) -> None:
        """Waits no longer than `ANSWER_S`. Nothing on a node without."""
        if self.storage is None:
            return
        async with self._looking:
            before, self.mount = self.mount, await in_thread(self._look_now, self.storage)
        if before is None or (before.id, before.problem) != (self.mount.id, self.mount.problem):
            tell = log.error if self.mount.problem else log.info
            tell("shared storage", directory=self.mount.directory, id=self.mount.id, problem=self.mount.problem)

    def _look_now(self, storage: SharedStorage) -> SharedMount:
        directory = str(storage.directory)
        try:
            if self._helper is None or not self._helper.alive:
                self._helper = storage.helper()
            found = self._helper.call("probe", timeout_s=ANSWER_S, directory=directory, node=self._node)
        except (WhimbrelError, OSError) as error:
            return SharedMount(directory=directory, problem=str(error))
        return SharedMount(directory=directory, **found)
