"""A service's root file system on shared storage: to the rest of the agent the same as a `Layer`.

What is the node's own stays here: /dev/shm as ever, and the top-level folders /dev, /run and /tmp, which are folders of
a small local layer, bound into the container and carried like one. They hold what file systems over a network are bad
at (device nodes, sockets, temporary files without a name), and nobody else needs to see them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from whimbrel.model.errors import WhimbrelError
from whimbrel.storage.devices import fill_dev
from whimbrel.storage.layer import mount_shm, unmount
from whimbrel.storage.mounts import mount_at
from whimbrel.storage.shared.place import SharedStorage, required

LOCAL = ("dev", "run", "tmp")
_MARK = "shared.json"


class SharedRoot:
    """`upper` is the local layer, `rootfs` where the shared root is mounted, `shm` the service's /dev/shm; `local` the
    top-level folders that are bound from `upper`."""

    def __init__(self, service_dir: Path, storage: SharedStorage | None, node: str) -> None:
        self.upper = service_dir / "layer" / "upper"
        self.rootfs = service_dir / "rootfs"
        self.shm = service_dir / "shm"
        self._name = service_dir.name
        self._mark = service_dir / _MARK
        self._storage, self._node = storage, node

    @staticmethod
    def is_marked(service_dir: Path) -> bool:
        return (service_dir / _MARK).exists()

    @property
    def local(self) -> tuple[str, ...]:
        return tuple(json.loads(self._mark.read_text())["local"])

    # --- as a new service, or as one that comes -------------------------------------------------------------
    def fill(self, image_rootfs: Path, image: Any) -> None:
        """A new service: copy the image to the shared storage. Seconds. `image` is what `describe` tells later."""
        local = [name for name in LOCAL if not (image_rootfs / name).is_symlink()]
        self._create(local)
        self._required.fill(self._name, image_rootfs, self.upper, local, {"image": image, "local": local})
        fill_dev(self.upper / "dev")

    def expect(self) -> Any:
        """One that comes from another node: nothing is copied. Returns the `image` that `fill` was given."""
        about = self._required.describe(self._name)
        self._create(about["local"])
        for name in about["local"]:
            (self.upper / name).mkdir(exist_ok=True)
        fill_dev(self.upper / "dev")
        return about["image"]

    def _create(self, local: list[str]) -> None:
        self._mark.write_text(json.dumps({"local": local}))  # first: `remove` must know what this is
        self.upper.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.upper, self.rootfs, self.shm):
            folder.mkdir(mode=0o755, exist_ok=True)

    def mount(self, owner: str, *, whole: bool) -> None:
        """Mount the root, which must be node `owner`'s, and /dev/shm, unless they are mounted; with `whole` the local
        folders below it too, for runc. (CRIU mounts them itself.)"""
        mount_shm(self.shm)
        if mount_at(Path(os.path.realpath(self.rootfs.parent), self.rootfs.name)) is None:
            local = {name: str(self.upper / name) for name in self.local} if whole else {}
            self._required.attach(self._name, self.rootfs, owner, local)

    def claim(self) -> None:
        """It has come: this node's from now on. Again before it goes: that may not have been heard."""
        self._required.claim(self._name, self._node)

    # --- going ------------------------------------------------------------------------------------------------
    def hand_over(self, to: str) -> None:
        """The service runs at node `to` now: let go of it here. The root stays; should `to` have had no time to say
        that it is its, this node does."""
        self.leave()
        if self._storage is not None:
            with contextlib.suppress(WhimbrelError):  # `to` says so itself when it moves on
                self._storage.claim(self._name, to, before=self._node)

    def remove(self) -> None:
        """Unmount, and delete the root if it is this node's. Raises Unreachable, and keeps it, while nobody answers."""
        self._unmount()
        if self._mark.exists():
            self._required.remove(self._name)
        self.leave()

    def leave(self) -> None:
        """Unmount, and remove what is the node's own of it. Does not touch the shared file system."""
        self._unmount()
        shutil.rmtree(self.upper.parent, ignore_errors=True)
        for mount_point in (self.rootfs, self.shm):
            with contextlib.suppress(FileNotFoundError):
                mount_point.rmdir()
        self._mark.unlink(missing_ok=True)

    def _unmount(self) -> None:
        unmount(self.rootfs)
        unmount(self.shm)

    def tidy(self, pids: list[int]) -> None:
        """Remove what CRIU left there when it was killed in a dump or restore."""
        self._required.tidy(self.rootfs, pids)

    @property
    def _required(self) -> SharedStorage:
        return required(self._storage, self._node)
