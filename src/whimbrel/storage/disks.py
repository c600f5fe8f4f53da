"""A folder of a fixed size: an ext4 file system in a sparse file, mounted through a loop device.

The kernel lets the loop device go by itself when the file system is unmounted.
"""

from __future__ import annotations

import os
from pathlib import Path

from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.storage.unpack import run

_HINT = "leave the size of the volume out to have it as a plain folder"


def make_disk(image: Path, size_bytes: int) -> None:
    """Raises Refused when this node cannot make file systems."""
    with image.open("xb") as file:
        file.truncate(size_bytes)
    try:
        # Nobody's blocks are reserved, and nothing is written that is not needed: most of the file stays a hole.
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", str(image))
    except WhimbrelError as error:
        raise Refused(f"a volume of a fixed size cannot be made here: {error}; {_HINT}") from error


def mount_disk(image: Path, target: Path) -> None:
    """Mount it unless it is. Raises Refused when this node has no loop devices."""
    if os.path.ismount(target):
        return
    try:
        run("mount", "-o", "loop,nodev", "-t", "ext4", str(image), str(target))
    except WhimbrelError as error:
        raise Refused(f"a volume of a fixed size cannot be mounted here: {error}; {_HINT}") from error
    leftover = target / "lost+found"  # programs that want an empty folder stumble over it; fsck makes its own
    if leftover.is_dir():
        leftover.rmdir()
