"""What is mounted where, read from the kernel's own table.

Never by asking the file system itself: a dead network file system answers no question, and whoever asks hangs.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import NamedTuple

from whimbrel.model.errors import WhimbrelError

_MS_BIND = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)
_ESCAPE = re.compile(r"\\([0-7]{3})")  # the table writes blanks so


class Mount(NamedTuple):
    """`number` is the kernel's own of the mount; `flags` are those of the mount point (``rw,noexec``), `options` those
    of the file system."""

    number: int
    point: Path
    kind: str
    flags: str
    options: str


def mounts(pid: int | str = "self") -> list[Mount]:
    """All mounts that a process sees, in the order in which they were made."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _source, options) = left.split(" "), right.split(" ", 2)
        point = _ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4])
        found.append(Mount(int(fields[0]), Path(point), kind, fields[5], options))
    return found


def mount_at(point: Path) -> Mount | None:
    """The topmost mount at exactly this absolute path."""
    return next((mount for mount in reversed(mounts()) if mount.point == point), None)


def mount_of(path: Path) -> Mount:
    """The mount that an absolute path without links lies on."""
    candidates = [mount for mount in mounts() if mount.point == path or mount.point in path.parents]
    longest = max(len(mount.point.parts) for mount in candidates)
    return [mount for mount in candidates if len(mount.point.parts) == longest][-1]


def bind(source: Path, target: Path) -> None:
    """Let `source` be seen at `target` too. Raises WhimbrelError."""
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None) != 0:
        raise WhimbrelError(f"cannot mount {source} at {target}: {os.strerror(ctypes.get_errno())}")
