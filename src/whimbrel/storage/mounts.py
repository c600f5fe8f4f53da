"""What is mounted where, read from the kernel's own table.

Never by asking the file system itself: a dead network file system answers no question, and whoever asks hangs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_ESCAPE = re.compile(r"\\([0-7]{3})")  # the table writes blanks so


class Mount(NamedTuple):
    """`number` is the kernel's own of the mount; `options` are those of the file system, not of the mount point."""

    number: int
    point: Path
    kind: str
    options: str


def mounts(pid: int | str = "self") -> list[Mount]:
    """All mounts that a process sees, in the order in which they were made."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _source, options) = left.split(" "), right.split(" ", 2)
        point = _ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4])
        found.append(Mount(int(fields[0]), Path(point), kind, options))
    return found


def mount_at(point: Path) -> Mount | None:
    """The topmost mount at exactly this absolute path."""
    return next((mount for mount in reversed(mounts()) if mount.point == point), None)


def mount_of(path: Path) -> Mount:
    """The mount that an absolute path without links lies on."""
    candidates = [mount for mount in mounts() if mount.point == path or mount.point in path.parents]
    longest = max(len(mount.point.parts) for mount in candidates)
    return [mount for mount in candidates if len(mount.point.parts) == longest][-1]
