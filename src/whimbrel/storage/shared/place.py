"""A node's way to the shared file system: what the helper does, as methods that never block longer than they say."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from whimbrel.model.errors import Refused
from whimbrel.storage.shared.helper import Helper
from whimbrel.storage.shared.visible import Seen

QUICK_S = 5.0
COPY_S = 600.0
REMOVE_S = 60.0


class SharedStorage:
    """The shared file system at `directory`, used by `node`. All methods may be called from any thread, block, and
    raise Unreachable when the file system does not answer in time. `helper()` gives a process to keep, for steps that
    must not wait for its start; the others use one that is kept here (each start costs a migration 0.1 s)."""

    def __init__(self, directory: Path, node: str) -> None:
        self.directory = directory
        self._node = node
        self._gate = threading.Lock()
        self._idle: Helper | None = None

    def helper(self) -> Helper:
        return Helper(str(self.directory))

    def close(self) -> None:
        """The process that is kept ends; the next call starts another."""
        self._keep(None)

    # --- roots of services --------------------------------------------------------------------------------
    def fill(self, name: str, image_rootfs: Path, upper: Path, local: list[str], about: Any) -> None:
        self._call("fill", COPY_S, name=name, node=self._node, image_rootfs=str(image_rootfs), upper=str(upper),
                   local=local, about=about)  # fmt: skip

    def attach(self, name: str, target: Path, owner: str, local: dict[str, str]) -> None:
        self._call("attach", QUICK_S, name=name, node=owner, target=str(target), local=local)

    def describe(self, name: str) -> Any:
        return self._call("describe", QUICK_S, name=name)

    def claim(self, name: str, node: str, before: str = "") -> None:
        self._call("claim", QUICK_S, name=name, node=node, before=before)

    def remove(self, name: str) -> bool:
        return bool(self._call("remove", REMOVE_S, name=name, node=self._node))

    def tidy(self, root: Path, pids: list[int]) -> None:
        self._do("tidy", QUICK_S, root=str(root), pids=pids)

    def sweep(self) -> None:
        """At the node's start: remove what it was making or deleting when it ended."""
        self._call("sweep", REMOVE_S, node=self._node)

    def _call(self, call: str, timeout_s: float, /, **arguments: Any) -> Any:
        return self._do(call, timeout_s, directory=str(self.directory), **arguments)

    def _do(self, call: str, timeout_s: float, /, **arguments: Any) -> Any:
        with self._gate:
            kept, self._idle = self._idle, None
        helper = kept if kept is not None and kept.alive else self.helper()
        try:
            return helper.call(call, timeout_s=timeout_s, **arguments)
        finally:
            self._keep(helper)

    def _keep(self, helper: Helper | None) -> None:
        with self._gate:
            before, self._idle = self._idle, helper
        if before is not None:
            before.close()


def await_visible(helper: Helper, folder: Path, seen: list[Seen], *, timeout_s: float) -> float:
    return float(
        helper.call("await_visible", timeout_s=timeout_s + QUICK_S, root=str(folder), expected=seen, wait_s=timeout_s)
    )


def required(storage: SharedStorage | None, node: str) -> SharedStorage:
    """Raises Refused on a node without."""
    if storage is None:
        raise Refused(
            f"{node} has no shared file system: set shared_directory in its agent.toml (docs/shared-storage.md)"
        )
    return storage
