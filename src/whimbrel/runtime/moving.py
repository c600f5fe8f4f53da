"""What of a container crosses in a migration, seen from its two ends: plain values between the engine that knows
the container and the migration that carries it."""

from __future__ import annotations

import msgspec


class FileRoot(msgspec.Struct, frozen=True, kw_only=True):
    """A folder whose changes follow the container. `inside` is where the container sees it ("" for its root).

    `base`: a folder that the destination has already; then only what differs from it crosses at first.
    """

    path: str
    inside: str = ""
    base: str = ""


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """The source's end. `external` are CRIU's words for mounts that it need not carry (``mnt[POINT]:KEY``);
    `description` tells the destination's engine what to make ready (empty where the service's status says all);
    `shared`: the root is on storage that the destination mounts too, and does not cross."""

    rootfs: str
    files: tuple[FileRoot, ...]
    external: tuple[str, ...]
    cgroup: str
    description: bytes = b""
    shared: bool = False


class FileTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where a `FileRoot` arrives. `merged`: the folder shows lower layers too, so a whiteout means "delete"."""

    path: str
    merged: bool = False


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """The destination's end: what waits for the restored processes.

    `external` are CRIU's words for the mounts made ready here (``mnt[KEY]:PATH``). `runc_root` and `runc_id` name
    the placeholder in runc's records, "" where there is none. `foreign`: another engine shall be the parent of the
    restored tree; whoever becomes the CRIU that restores has the container's standard streams, and `pid_file` is where
    that engine looks for the first process. `shared`: the root is where the source has it, on storage that both mount.
    """

    rootfs: str
    files: tuple[FileTarget, ...]
    external: tuple[str, ...]
    cgroup: str
    runc_root: str = ""
    runc_id: str = ""
    own_cgroupns: bool = False
    foreign: bool = False
    pid_file: str = ""
    shared: bool = False
