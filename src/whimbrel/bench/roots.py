"""A root file system of a paper's size: what its containers of whole systems hold, and an application's image does not.

The filling is this machine's own programs, libraries and documents, in the order of their names: some thousand files
of all sizes, as a system has them. Nobody opens them; they are there to be carried.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from whimbrel.model.errors import Refused
from whimbrel.model.units import format_bytes

PLACE = "usr/share/system"  # in the root
SOURCES = (Path("/usr/share"), Path("/usr/lib"))


def fill(root: Path, size_bytes: int) -> None:
    """Add files below `PLACE` until the root holds `size_bytes`, within a hundredth; nothing where it does. Raises
    Refused when this machine has not as many files of its own."""
    left, little = size_bytes - size_of(root), size_bytes // 100
    for path, size in itertools.chain.from_iterable(map(_files, SOURCES)):
        if left <= little:
            return
        if size <= left:
            target = Path(root, PLACE, path.relative_to("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            left -= size
    if left > little:
        raise Refused(
            f"/usr of this machine has {format_bytes(left)} too little to fill a root of {format_bytes(size_bytes)}"
        )


def empty(root: Path) -> None:
    """Take what `fill` added away again."""
    shutil.rmtree(root / PLACE, ignore_errors=True)


def size_of(root: Path) -> int:
    """Bytes of all its plain files."""
    return sum(size for _, size in _files(root))


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Plain files with their sizes, by name; links and other file systems are left out."""
    device = folder.stat().st_dev
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(at, name).lstat().st_dev == device)
        for name in sorted(names):
            about = os.lstat(Path(at, name))
            if stat.S_ISREG(about.st_mode):
                yield Path(at, name), about.st_size
