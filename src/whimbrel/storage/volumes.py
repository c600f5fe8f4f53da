"""The volumes of one node: folders of services outside of their writable layers.

    <root>/<service>/<name>/volume.json   what it is
                           /data          its files: bound into the container
                           /disk.img      its file system, if it has a fixed size (then mounted at data)

A volume lives and moves with its service. One that is *kept* has outlived it, and waits for a service of that name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import msgspec

from whimbrel.model.errors import BadInput, Conflict, WhimbrelError
from whimbrel.model.volume import Volume
from whimbrel.storage.confined import FOLDER, open_folder
from whimbrel.storage.disks import make_disk, mount_disk
from whimbrel.storage.layer import unmount
from whimbrel.storage.listing import allocated_bytes
from whimbrel.storage.treecopy import copy_folder

_RECORD = "volume.json"


class StoredVolume(msgspec.Struct, frozen=True, kw_only=True):
    """`kept`: it is there for a later service, and no failure of that may take it away."""

    service: str
    name: str
    path: str
    size_bytes: int = 0
    kept: bool = False


class VolumeStore:
    """All methods block. Not for two callers with one service at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def data(self, service: str, name: str) -> Path:
        return self._folder(service, name) / "data"

    def attach(self, service: str, volumes: tuple[Volume, ...], rootfs: Path) -> None:
        """Make the volumes of a service that starts, or find kept ones. A fresh volume begins with what the image
        (`rootfs`) has at its path. Raises BadInput for a path that no volume can have, or a kept one of another size.
        """
        for volume in volumes:
            _check_place(volume, rootfs)
            kept = self._read(service, volume.name)
            if kept is None:
                self._make(service, volume)
                self._seed(service, volume, rootfs)
                continue
            if kept.size_bytes != volume.size_bytes:
                raise BadInput(
                    f"volume {volume.name} of {service} was kept here with {_size(kept.size_bytes)}: ask for that, or "
                    f"remove it (`whimbrel volume rm {service}/{volume.name}`)"
                )
            self._mount(kept)
            self._write(msgspec.structs.replace(kept, path=volume.path))

    def prepare(self, service: str, volumes: tuple[Volume, ...]) -> None:
        """Empty volumes for a service that is on its way. Raises Conflict when one is here already."""
        self.refuse_kept(service, volumes)
        for volume in volumes:
            self._make(service, volume)

    def refuse_kept(self, service: str, volumes: tuple[Volume, ...]) -> None:
        """Raises Conflict when a service that moves here would find volumes of an earlier one of its name."""
        for volume in volumes:
            if self._read(service, volume.name) is not None:
                raise Conflict(
                    f"a volume {volume.name} of an earlier service {service} is kept there: look at it, and remove it "
                    f"(`whimbrel volume rm {service}/{volume.name}`)"
                )

    def in_use(self, service: str) -> None:
        """The service runs: its volumes share its fate from now on."""
        for volume in self._of(service):
            self._write(msgspec.structs.replace(volume, kept=False))

    def keep(self, service: str) -> None:
        """The service is going to be removed, its volumes are not."""
        for volume in self._of(service):
            self._write(msgspec.structs.replace(volume, kept=True))

    def remove_unkept(self, service: str) -> None:
        """Remove the volumes that nobody asked to keep; the others are unmounted. None is no error."""
        for volume in self._of(service):
            self._remove(volume) if not volume.kept else unmount(self.data(service, volume.name))
        for left in (self.root / service).glob("*/"):
            if not (left / _RECORD).exists():  # what a crash left half-made
                self._delete(left)
        with contextlib.suppress(OSError):
            (self.root / service).rmdir()

    def remove(self, service: str, name: str) -> None:
        """Raises BadInput for a volume that is not here."""
        volume = self._read(service, name)
        if volume is None:
            raise BadInput(f"there is no volume {service}/{name} here: see `whimbrel volume ls`")
        self._remove(volume)
        with contextlib.suppress(OSError):
            (self.root / service).rmdir()

    def all(self) -> list[StoredVolume]:
        return [volume for folder in sorted(self.root.glob("*/")) for volume in self._of(folder.name)]

    def used_bytes(self, volume: StoredVolume) -> int:
        """What its files take; 0 for one of a fixed size that is not mounted."""
        return allocated_bytes(self.data(volume.service, volume.name))

    def _folder(self, service: str, name: str) -> Path:
        for part in (service, name):
            if not part or "/" in part or part.startswith("."):
                raise BadInput(f"there is no volume {service}/{name} here: see `whimbrel volume ls`")
        return self.root / service / name

    def _of(self, service: str) -> list[StoredVolume]:
        folders = sorted((self.root / service).glob("*/"))
        return [volume for folder in folders if (volume := self._read(service, folder.name)) is not None]

    def _read(self, service: str, name: str) -> StoredVolume | None:
        try:
            return msgspec.json.decode((self._folder(service, name) / _RECORD).read_bytes(), type=StoredVolume)
        except FileNotFoundError:
            return None

    def _write(self, volume: StoredVolume) -> None:
        folder = self._folder(volume.service, volume.name)
        replacement = folder / f"{_RECORD}.new"
        with replacement.open("wb") as file:
            file.write(msgspec.json.encode(volume))
            file.flush()
            os.fsync(file.fileno())
        replacement.replace(folder / _RECORD)

    def _make(self, service: str, volume: Volume) -> None:
        folder = self._folder(service, volume.name)
        if folder.exists():
            self._delete(folder)  # a crash left it without its record
        folder.mkdir(mode=0o700, parents=True)
        self.data(service, volume.name).mkdir(mode=0o755)
        if volume.size_bytes:
            make_disk(folder / "disk.img", volume.size_bytes)
        stored = StoredVolume(service=service, name=volume.name, path=volume.path, size_bytes=volume.size_bytes)
        self._write(stored)
        self._mount(stored)

    def _mount(self, volume: StoredVolume) -> None:
        if volume.size_bytes:
            folder = self._folder(volume.service, volume.name)
            mount_disk(folder / "disk.img", folder / "data")

    def _seed(self, service: str, volume: Volume, rootfs: Path) -> None:
        source = rootfs / volume.path.lstrip("/")
        if source.is_dir():
            copy_folder(source, self.data(service, volume.name))

    def _remove(self, volume: StoredVolume) -> None:
        self._delete(self._folder(volume.service, volume.name))

    def _delete(self, folder: Path) -> None:
        unmount(folder / "data")
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise WhimbrelError(f"cannot delete {error.filename}: {error.strerror}") from error


def _check_place(volume: Volume, rootfs: Path) -> None:
    """CRIU knows a mount by its place, so that must be the real one; a link in the image would make it another."""
    root = os.open(rootfs, FOLDER)
    try:
        os.close(open_folder(root, volume.path.lstrip("/")))
    except FileNotFoundError:
        return
    except OSError as error:
        raise BadInput(
            f"volume {volume.name} cannot be at {volume.path}: the image has a file or a symbolic link on the way; "
            "name the folder that it leads to, or another one"
        ) from error
    finally:
        os.close(root)


def _size(size_bytes: int) -> str:
    return f"{size_bytes} bytes" if size_bytes else "no size"
