"""Where a service's parts are on its node, and the record that outlives the agent.

<state dir>/services/<name>/service.json   the record
                           /config.json    runc's bundle
                           /layer /rootfs /shm /logs
                           /shared.json if its root is on shared storage
<state dir>/netns/<name>                   its network namespace
<state dir>/run/runc                       runc's own records (tmpfs)
<state dir>/run/waiting/<name>             root file system on which a placeholder waits (tmpfs)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from whimbrel.model.errors import WhimbrelError
from whimbrel.model.service import ServiceSpec, ServiceStatus
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.spec import build_spec, cgroup_path
from whimbrel.storage.images import Image
from whimbrel.storage.layer import Layer, mount_overlay, unmount
from whimbrel.storage.shared.place import SharedStorage
from whimbrel.storage.shared.root import SharedRoot


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`incoming`: the service is not here yet, a migration prepares it."""

    status: ServiceStatus
    incoming: bool = False


_WAIT = "wait"


class Place:
    """The parts of one service on one node. Blocks. `storage` is the node's shared storage, if it has one."""

    def __init__(self, state_dir: Path, node: str, name: str, storage: SharedStorage | None = None) -> None:
        self.name = name
        self.folder = state_dir / "services" / name
        self.shared_root = SharedRoot(self.folder, storage, node)
        self.logs = self.folder / "logs"
        self.netns = state_dir / "netns" / name
        self.cgroup = Cgroup(cgroup_path(node, name))
        self._waiting = state_dir / "run" / "waiting" / name

    @property
    def layer(self) -> Layer | SharedRoot:
        """Where its files are: in a layer of its own here, or on shared storage."""
        return self.shared_root if SharedRoot.is_marked(self.folder) else Layer(self.folder)

    def create(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True)

    def save(self, record: Record) -> None:
        """Replace service.json whole, so that a reader never sees half of one."""
        replacement = self.folder / "service.json.new"
        with replacement.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        replacement.replace(self.folder / "service.json")

    def load(self) -> Record | None:
        """None when there is none, or none that can be read: what is here was never finished."""
        try:
            return msgspec.json.decode((self.folder / "service.json").read_bytes(), type=Record)
        except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
            return None

    def write_bundle(self, spec: ServiceSpec, image: Image, *, waiting: bool = False) -> None:
        """config.json for runc; `waiting`: with the placeholder's root file system."""
        layer = self.layer
        if waiting and spec.shared:
            spec, image = msgspec.structs.replace(spec, args=()), _waiting_image(image)
        config = build_spec(
            spec,
            image,
            rootfs=self._waiting / "rootfs" if waiting else layer.rootfs,
            shm=layer.shm,
            netns=self.netns,
            cgroup=self.cgroup.path,
        )
        (self.folder / "config.json").write_bytes(config)

    def mount_waiting(self, image: Image) -> None:
        """A root file system of the image alone: nobody may look into the real one while files arrive."""
        upper, work, rootfs = (self._waiting / name for name in ("upper", "work", "rootfs"))
        for folder in (upper, work, rootfs):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        mount_overlay(image.rootfs, upper, work, rootfs)

    def make_waiting(self) -> None:
        """The same where nobody has the image: runc looks for the program only, and the placeholder never starts it."""
        rootfs = self._waiting / "rootfs"
        rootfs.mkdir(mode=0o755, parents=True, exist_ok=True)
        (rootfs / _WAIT).touch(mode=0o755)

    def remove_waiting(self) -> None:
        unmount(self._waiting / "rootfs")
        shutil.rmtree(self._waiting, ignore_errors=True)

    def remove_files(self, *, keep_root: bool = False, moved_to: str = "") -> None:
        """Delete everything of the service. A root on shared storage stays with `keep_root` (it is not this node's
        yet), and when the service has `moved_to` another node. Raises WhimbrelError when something is still mounted
        there."""
        self.remove_waiting()
        layer = self.layer
        if isinstance(layer, Layer):
            layer.remove()
        elif moved_to:
            layer.hand_over(moved_to)
        elif keep_root:
            layer.leave()
        else:
            layer.remove()
        if not self.folder.exists():
            return
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise WhimbrelError(f"cannot delete {error.filename} of {self.name}: {error.strerror}") from error

    def rss_bytes(self, pids: list[int]) -> int:
        """Resident memory, summed over the processes (shared pages count in each)."""
        pages = 0
        for pid in pids:
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
        return pages * os.sysconf("SC_PAGE_SIZE")


def _waiting_image(image: Image) -> Image:
    return msgspec.structs.replace(image, argv=(f"/{_WAIT}",), entrypoint=(), cwd="/")
