"""The mounts inside a container: what CRIU can make anew, and what must be made ready for it.

CRIU carries the kernel's own file systems. A tmpfs it carries too, but with two runs of `tar` for each, 4 ms a piece
inside the freeze; so those, like volumes, cross as files while the container runs, and CRIU only binds what is
ready there. A bind mount from the host it cannot know at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from whimbrel.model.errors import Refused, WhimbrelError

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_OPEN_TREE, _MOVE_MOUNT = 428, 429  # the same numbers on x86-64 and arm64
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_FDCWD = 1, 4, -100
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_ESCAPES = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}

CARRIED_BY_CRIU = frozenset(
    ("proc", "sysfs", "devpts", "mqueue", "pstore", "securityfs", "fusectl", "debugfs", "binfmt_misc")
)
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One line of /proc/PID/mountinfo. `root`: which part of the file system is seen there; `device`: which one."""

    device: str
    root: str
    point: str
    kind: str
    options: str
    super_options: str

    @property
    def is_read_only(self) -> bool:
        return "ro" in self.options.split(",") or "ro" in self.super_options.split(",")


def read_mounts(pid: int) -> tuple[Mount, ...]:
    """In the order of their mounting. Raises WhimbrelError when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise WhimbrelError(f"the mounts of process {pid} cannot be read: {error.strerror}") from error
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        _, _, device, root, point, options = before.split(" ")[:6]
        kind, _, super_options = after.split(" ", 2)
        found.append(
            Mount(
                device=device,
                root=_plain(root),
                point=_plain(point),
                kind=kind,
                options=options,
                super_options=super_options,
            )
        )
    return tuple(found)


def _plain(text: str) -> str:
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    return text


class MountPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Mount points by what becomes of them; whatever is in none of them CRIU carries.

    `provided`: the other side has its own; `carried`: the same, and its files cross; `texts`: single files whose
    contents cross with the container's description.
    """

    provided: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def external(self) -> tuple[str, ...]:
        return (*self.provided, *self.carried, *self.texts)


def plan_mounts(
    mounts: Iterable[Mount], *, provided: Iterable[str] = (), volumes: Iterable[str] = (), texts: Iterable[str] = ()
) -> MountPlan:
    """Sort a container's mounts. The three sets of mount points are what its engine mounts into it from the host.

    Raises Refused for a mount that nobody knows how to make at another node.
    """
    known, carried_volumes, files = set(provided), set(volumes), set(texts)
    mounts = tuple(mounts)
    whole = {mount.device for mount in mounts if mount.root == "/"}
    plan: dict[str, list[str]] = {"provided": [], "carried": [], "texts": []}
    devices: set[str] = set()  # of the mounts that are made ready: CRIU binds further parts of them by itself
    seen: set[str] = set()
    for mount in mounts:
        if mount.point == "/":
            continue
        if mount.point in seen:
            raise Refused(f"something is mounted twice at {mount.point}: unmount the upper one first")
        seen.add(mount.point)
        if mount.point in files:
            plan["texts"].append(mount.point)
        elif mount.point in carried_volumes:
            plan["carried"].append(mount.point)
        elif mount.point in known or mount.kind in ("cgroup", "cgroup2"):
            plan["provided"].append(mount.point)
        elif mount.kind == "tmpfs" and mount.root == "/":
            plan["provided" if mount.is_read_only else "carried"].append(mount.point)
            devices.add(mount.device)
        elif mount.device not in devices and not (mount.kind in CARRIED_BY_CRIU and mount.device in whole):
            raise Refused(f"{mount.point} ({mount.kind}) is mounted in it from outside: unmount it there first")
    return MountPlan(**{kind: tuple(points) for kind, points in plan.items()})


def clone_mounts(pid: int, points: Iterable[str], folder: Path) -> dict[str, Path]:
    """Show single mounts of another mount namespace below `folder` too, without the mounts on top of them.

    Undone by `drop_clones`. Raises WhimbrelError, with nothing left.
    """
    wanted = list(points)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        pieces = in_mounts_of(pid, lambda: [_cut(point) for point in wanted])
        shown: dict[str, Path] = {}
        for number, (point, descriptor) in enumerate(zip(wanted, pieces, strict=True)):
            try:
                target = folder / str(number)
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    target.mkdir()
                else:
                    target.touch()
                arguments = (descriptor, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
                _checked(_libc.syscall(_MOVE_MOUNT, *arguments), f"show {point} of process {pid} at {target}")
                shown[point] = target
            finally:
                os.close(descriptor)
        return shown
    except BaseException:
        drop_clones(folder)
        raise


def drop_clones(folder: Path) -> None:
    """Take away what `clone_mounts` made, and the folder. Safe to repeat."""
    if not folder.exists():
        return
    for target in folder.iterdir():
        while _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
            pass
        target.rmdir() if target.is_dir() else target.unlink()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def _cut(point: str) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _checked(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(point), flags), f"open {point}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise WhimbrelError(f"cannot {what}: {os.strerror(ctypes.get_errno())}")
    return result


def in_mounts_of(pid: int, function: Callable[[], T]) -> T:
    """Run it in the mount namespace of a process, in a thread of its own, which ends there. Raises WhimbrelError when
    the process is gone, and whatever the function raises."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            with open(f"/proc/{pid}/ns/mnt") as namespace:
                _checked(_libc.unshare(_CLONE_FS), "leave the working directory of the other threads")
                _checked(_libc.setns(namespace.fileno(), _CLONE_NEWNS), f"enter the mounts of process {pid}")
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="mounts", daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome.get("error"), FileNotFoundError):
        raise WhimbrelError(f"process {pid} is gone: {outcome['error']}")
    if "error" in outcome:
        raise outcome["error"]
    value: T = outcome["value"]
    return value
