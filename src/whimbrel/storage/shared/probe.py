"""Is the shared file system there, does it take what is written, and could a root file system live on it?"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import TypedDict

from whimbrel.model.errors import Refused
from whimbrel.storage.mounts import Mount, mount_of
from whimbrel.storage.shared.marker import FOLDER, identify

# Of one machine alone. Whatever is not here may be shared: NFS, FUSE, Ceph, cluster file systems on a common disk.
_LOCAL = frozenset(
    ("btrfs", "devtmpfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "iso9660", "overlay", "ramfs", "rootfs", "squashfs",
     "tmpfs", "vfat", "xfs", "zfs")
)  # fmt: skip
_SOME_USER = 54321


class Found(TypedDict):
    """`roots_problem`: why no root file system can live there, empty when one can."""

    id: str
    kind: str
    free_bytes: int
    round_trip_ms: float
    roots_problem: str


def probe(directory: str, node: str) -> Found:
    """Look at all of it; a few ms. Raises Refused when it is not mounted, OSError when it does not work."""
    path = Path(os.path.realpath(directory))
    mount = require_mounted(path)
    identity = identify(path)
    started_s = time.monotonic()
    _round_trip(path / FOLDER / "nodes" / node)
    round_trip_ms = (time.monotonic() - started_s) * 1e3
    room = os.statvfs(path)
    return Found(
        id=identity,
        kind=mount.kind,
        free_bytes=room.f_bavail * room.f_frsize,
        round_trip_ms=round(round_trip_ms, 3),
        roots_problem=_roots_problem(mount, path / FOLDER / "nodes" / f".{node}-{secrets.token_hex(4)}"),
    )


def require_mounted(path: Path) -> Mount:
    """Raises Refused when `path` is a plain folder of this machine: the mount is missing."""
    if not path.is_dir():
        raise Refused(f"{path} is not there: make it, and mount the shared file system on it")
    mount = mount_of(path)
    if mount.kind in _LOCAL:
        raise Refused(
            f"{path} is on this machine's own {mount.kind} at {mount.point}: mount the shared file system there"
        )
    return mount


def _round_trip(path: Path) -> None:
    nonce = f"{time.time():.3f} {secrets.token_hex(8)}\n"
    with path.open("w") as file:
        file.write(nonce)
        file.flush()
        os.fsync(file.fileno())
    if path.read_text() != nonce:
        raise OSError(f"{path} reads otherwise than it was written")


def _roots_problem(mount: Mount, scratch: Path) -> str:
    """A container's root needs owners, links, programs, and files that live on without a name, also for CRIU."""
    if mount.kind.startswith("fuse") and "allow_other" not in mount.options.split(","):
        return "it is mounted without allow_other, so only root could use it"
    if "noexec" in mount.flags.split(","):
        return "it is mounted noexec"
    scratch.mkdir(mode=0o700)
    try:
        return _try_features(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _try_features(scratch: Path) -> str:
    file, link, name = scratch / "file", scratch / "link", scratch / "name"
    file.write_bytes(b"x")
    try:
        os.chown(file, _SOME_USER, _SOME_USER)
        kept = file.stat().st_uid == _SOME_USER
    except PermissionError:
        kept = False
    if not kept:
        return "it keeps no owners (NFS: export it with no_root_squash)"
    try:
        os.link(file, link)
        os.symlink("/nowhere", name)
        if os.readlink(name) != "/nowhere":
            return "it changes symbolic links"
    except OSError as error:
        return f"it has no links ({error.strerror}; sshfs: mount it with no_contain_symlinks)"
    return _nameless_problem(file)


def _nameless_problem(path: Path) -> str:
    """CRIU opens a deleted file again through /proc, to read it; some file systems (GlusterFS) have lost it then."""
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        try:
            file.write(b"yz")
            os.fstatvfs(file.fileno())
            with open(f"/proc/self/fd/{file.fileno()}", "rb") as again:
                if again.read() != b"yz":
                    return "a file that is deleted while open loses its contents"
        except OSError as error:
            return f"a file that is deleted while open cannot be opened again ({error.strerror})"
    with contextlib.suppress(FileNotFoundError):
        path.with_name("link").unlink()
    return ""
