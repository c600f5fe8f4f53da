"""Where a service's parts are on its node, and the record that outlives the agent.

<state dir>/services/<name>/service.json   the record
                           /config.json    runc's bundle
                           /layer /rootfs /shm /logs
<state dir>/volumes/<name>/                its volumes (see `whimbrel.storage.volumes`)
<state dir>/netns/<name>                   its network namespace
<state dir>/run/runc                       runc's own records (tmpfs)
<state dir>/run/waiting/<name>             root file system on which a placeholder waits (tmpfs)
<state dir>/run/clones/<name>              another engine's container: its mounts, while it moves (tmpfs)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from whimbrel.model.errors import WhimbrelError
from whimbrel.model.service import ServiceSpec, ServiceStatus
from whimbrel.model.volume import Volume, parse_volumes
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.engines.base import Guest
from whimbrel.runtime.spec import build_spec, cgroup_path
from whimbrel.storage.images import Image
from whimbrel.storage.layer import Layer, mount_overlay, unmount
from whimbrel.storage.volumes import VolumeStore


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`incoming`: the service is not here yet, a migration prepares it.

    `guest`: its container is another engine's, which has it here since `since_ns`; while it comes, `runc_root` is where
    runc keeps the placeholder.
    """

    status: ServiceStatus
    incoming: bool = False
    guest: Guest | None = None
    since_ns: int = 0
    runc_root: str = ""


class Place:
    """The parts of one service on one node. Blocks."""

    def __init__(self, state_dir: Path, node: str, name: str) -> None:
        self.name = name
        self.folder = state_dir / "services" / name
        self.layer = Layer(self.folder)
        self.logs = self.folder / "logs"
        self.netns = state_dir / "netns" / name
        self.cgroup = Cgroup(cgroup_path(node, name))
        self.volumes = VolumeStore(state_dir / "volumes")
        self.clones = state_dir / "run" / "clones" / name
        self._waiting = state_dir / "run" / "waiting" / name

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
        config = build_spec(
            spec,
            image,
            rootfs=self._waiting / "rootfs" if waiting else self.layer.rootfs,
            shm=self.layer.shm,
            volumes={volume.path: folder for volume, folder in self.volumes_of(spec)},
            netns=self.netns,
            cgroup=self.cgroup.path,
        )
        (self.folder / "config.json").write_bytes(config)

    def volumes_of(self, spec: ServiceSpec) -> list[tuple[Volume, Path]]:
        """The volumes, with where their files are on this node."""
        volumes = parse_volumes(spec.volumes)
        return [(volume, self.volumes.data(self.name, volume.name)) for volume in volumes]

    def mount_waiting(self, image: Image) -> None:
        """A root file system of the image alone: nobody may look into the real one while files arrive."""
        upper, work, rootfs = (self._waiting / name for name in ("upper", "work", "rootfs"))
        for folder in (upper, work, rootfs):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        mount_overlay(image.rootfs, upper, work, rootfs)

    def remove_waiting(self) -> None:
        unmount(self._waiting / "rootfs")
        shutil.rmtree(self._waiting, ignore_errors=True)

    def remove_files(self) -> None:
        """Delete everything of the service. Raises WhimbrelError when something is still mounted there."""
        self.remove_waiting()
        self.layer.remove()
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
