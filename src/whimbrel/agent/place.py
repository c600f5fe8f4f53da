"""Where a service's parts are on its node, and the record that outlives the agent.

<state dir>/services/<name>/service.json   the record
                           /config.json    runc's bundle
                           /layer /rootfs /shm /logs
                           /shared.json if its root is on shared storage
                           /needed     what it needed first when it came here
<state dir>/volumes/<name>/                its volumes (see `whimbrel.storage.volumes`)
<state dir>/netns/<name>                   its network namespace
<state dir>/run/runc                       runc's own records (tmpfs)
<state dir>/run/waiting/<name>             root file system on which a placeholder waits (tmpfs)
<state dir>/run/clones/<name>              another engine's container: its mounts, while it moves (tmpfs)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import msgspec
import structlog

from whimbrel.model.errors import WhimbrelError
from whimbrel.model.service import ServiceSpec, ServiceStatus
from whimbrel.model.volume import Volume, parse_volumes
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.engines.base import Guest
from whimbrel.runtime.moving import Departure, FileRoot, FileTarget, Landing
from whimbrel.runtime.spec import SHM_EXTERNAL, SHM_MOUNT, build_spec, cgroup_path, local_external, volume_external
from whimbrel.storage.images import Image, placed, portable
from whimbrel.storage.layer import Layer, mount_overlay, unmount
from whimbrel.storage.shared.place import SharedStorage
from whimbrel.storage.shared.root import SharedRoot
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


log = structlog.get_logger()
_WAIT = "wait"


def needed_file_of(state_dir: Path, name: str) -> Path:
    """Where is kept what a service needed first when it came here (see `whimbrel.memory.needed`)."""
    return state_dir / "services" / name / "needed"


class Place:
    """The parts of one service on one node. Blocks. `storage` is the node's shared storage, if it has one."""

    def __init__(self, state_dir: Path, node: str, name: str, storage: SharedStorage | None = None) -> None:
        self.name, self.node = name, node
        self.folder = state_dir / "services" / name
        self.shared_root = SharedRoot(self.folder, storage, node)
        self.logs = self.folder / "logs"
        self.netns = state_dir / "netns" / name
        self.cgroup = Cgroup(cgroup_path(node, name))
        self.volumes = VolumeStore(state_dir / "volumes")
        self.clones = state_dir / "run" / "clones" / name
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
            volumes={volume.path: folder for volume, folder in self.volumes_of(spec)},
            netns=self.netns,
            cgroup=self.cgroup.path,
        )
        (self.folder / "config.json").write_bytes(config)

    def volumes_of(self, spec: ServiceSpec) -> list[tuple[Volume, Path]]:
        """The volumes, with where their files are on this node."""
        volumes = parse_volumes(spec.volumes)
        return [(volume, self.volumes.data(self.name, volume.name)) for volume in volumes]

    # --- files ----------------------------------------------------------------------------------------------
    def set_up(self, spec: ServiceSpec, image: Image) -> None:
        """The files of a service that starts: those of its image, and its volumes."""
        if spec.shared:
            self.shared_root.fill(image.rootfs, portable(image))
            self.shared_root.mount(self.node, whole=True)
        else:
            Layer(self.folder).mount(image.rootfs)
        self.volumes.attach(spec.name, parse_volumes(spec.volumes), image.rootfs)

    def set_up_incoming(self, spec: ServiceSpec, image: Image | None, source: str) -> Image:
        """The same for one that comes from node `source`: nothing of its own is in them yet. `image` is None for a root
        on shared storage, which tells itself what it was made of; returns that. runc's placeholder gets a root of its
        own to wait on."""
        if image is None:
            image = placed(self.shared_root.expect(), self.shared_root.rootfs)
            self.shared_root.mount(source, whole=False)
            self.make_waiting()
        else:
            Layer(self.folder).mount(image.rootfs)
            self.mount_waiting(image)
        self.volumes.prepare(spec.name, parse_volumes(spec.volumes))
        return image

    def bound(self, spec: ServiceSpec) -> list[str]:
        """Where in the container folders of ours are mounted, as it sees them."""
        return [*(volume.path for volume, _ in self.volumes_of(spec)), *(f"/{name}" for name in self.layer.local)]

    def begin_departure(self) -> None:
        if isinstance(layer := self.layer, SharedRoot):
            layer.claim()

    def end_departure(self) -> None:
        """After a migration, however it ended."""
        if isinstance(layer := self.layer, SharedRoot):
            with contextlib.suppress(WhimbrelError, OSError):  # the next one tidies up first
                layer.tidy(self.cgroup.pids())

    def claim(self) -> None:
        """It has come. Should the storage not hear that now: it is told when the service moves on."""
        if isinstance(layer := self.layer, SharedRoot):
            try:
                layer.claim()
            except (WhimbrelError, OSError) as error:
                log.error("shared storage was not told of a new owner", service=self.name, error=str(error))

    def departure(self, spec: ServiceSpec) -> Departure:
        """What of it crosses: all that is this node's own. A root on shared storage is not."""
        layer, volumes = self.layer, self.volumes_of(spec)
        return Departure(
            rootfs=str(layer.rootfs),
            files=(
                FileRoot(path=str(layer.upper)),
                FileRoot(path=str(layer.shm), inside=SHM_MOUNT),
                *(FileRoot(path=str(folder), inside=volume.path) for volume, folder in volumes),
            ),
            external=(
                f"mnt[{SHM_MOUNT}]:{SHM_EXTERNAL}",
                *(f"mnt[/{name}]:{local_external(name)}" for name in layer.local),
                *(f"mnt[{volume.path}]:{volume_external(volume.name)}" for volume, _ in volumes),
            ),
            cgroup=self.cgroup.path,
            shared=spec.shared,
        )

    def landing(self, spec: ServiceSpec, runc_root: Path) -> Landing:
        """Where it arrives, in the order of its `departure`."""
        layer, volumes = self.layer, self.volumes_of(spec)
        return Landing(
            rootfs=str(layer.rootfs),
            files=(
                FileTarget(path=str(layer.upper)),
                FileTarget(path=str(layer.shm)),
                *(FileTarget(path=str(folder)) for _, folder in volumes),
            ),
            external=(
                f"mnt[{SHM_EXTERNAL}]:{layer.shm}",
                *(f"mnt[{local_external(name)}]:{layer.upper / name}" for name in layer.local),
                *(f"mnt[{volume_external(volume.name)}]:{folder}" for volume, folder in volumes),
            ),
            cgroup=self.cgroup.path,
            runc_root=str(runc_root),
            runc_id=spec.name,
            shared=spec.shared,
        )

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
