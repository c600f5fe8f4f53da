"""One writable layer per service: an overlay file system over the unpacked image."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path

from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.storage.devices import SHM_OPTIONS, fill_dev

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Layer:
    """Folders of one service: `upper` (what it changed), `work` (overlay's own), the mount points `rootfs`
    (all of it) and `shm` (its /dev/shm). `local`: top-level folders bound into the container, none here."""

    local: tuple[str, ...] = ()

    def __init__(self, service_dir: Path) -> None:
        self.upper = service_dir / "layer" / "upper"
        self.work = service_dir / "layer" / "work"
        self.rootfs = service_dir / "rootfs"
        self.shm = service_dir / "shm"

    def create(self) -> None:
        """Make the empty folders; those that exist stay as they are."""
        self.upper.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.upper, self.work, self.rootfs, self.shm):
            folder.mkdir(mode=0o755, exist_ok=True)
        fill_dev(self.upper / "dev")

    def mount(self, image_rootfs: Path) -> None:
        """Mount both unless they are mounted. About 0.3 ms. Raises Refused, WhimbrelError."""
        self.create()
        self.mount_shm()
        if not os.path.ismount(self.rootfs):
            mount_overlay(image_rootfs, self.upper, self.work, self.rootfs)

    def mount_shm(self) -> None:
        """Mount the tmpfs for /dev/shm alone."""
        mount_shm(self.shm)

    def unmount(self) -> None:
        """Take the mounts away, and with /dev/shm its contents; processes inside keep their own view."""
        unmount(self.rootfs)
        unmount(self.shm)

    def remove(self) -> None:
        """Unmount and delete all that the service wrote."""
        self.unmount()
        if self.upper.parent.exists():
            shutil.rmtree(self.upper.parent)
        for mount_point in (self.rootfs, self.shm):
            with contextlib.suppress(FileNotFoundError):
                mount_point.rmdir()


def mount_shm(target: Path) -> None:
    """Mount a tmpfs for /dev/shm, unless there is one."""
    if not os.path.ismount(target):
        _mount("tmpfs", target, "tmpfs", _MS_NODEV | _MS_NOSUID | _MS_NOEXEC, SHM_OPTIONS)


def mount_overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Overlay with the features off that would put inode numbers or redirects of this host into `upper`."""
    for path in (lower, upper, work):
        if any(character in str(path) for character in ":,\\"):
            raise Refused(f"cannot mount {path}: move it to a path without ':', ',' and '\\'")
    options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off,redirect_dir=off,xino=off"
    _mount("overlay", target, "overlay", 0, options)


def _mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        if number == errno.ENODEV:
            raise Refused(f"this kernel has no {kind} file system: run `whimbrel check`")
        raise WhimbrelError(f"cannot mount {kind} at {target}: {os.strerror(number)}")


def unmount(target: Path) -> None:
    """Detach every mount at `target`; a missing one is no error. Raises WhimbrelError."""
    while _libc.umount2(os.fsencode(target), _MNT_DETACH) == 0:
        pass
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOENT):
        raise WhimbrelError(f"cannot unmount {target}: {os.strerror(number)}")
