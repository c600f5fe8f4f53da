"""Names on the shared file system, and paths inside a container's root as seen from outside."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # a place only: costs no open on the server


@contextlib.contextmanager
def open_below(root: str, path: str, flags: int) -> Iterator[int]:
    """Open `path` below `root` as a descriptor, following no link at all: one could lead out. Raises OSError."""
    *folders, name = [part for part in path.split("/") if part not in ("", ".")] or ["."]
    if ".." in folders or name == "..":
        raise PermissionError(f"{path} leads out of {root}")
    at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    try:
        yield fd
    finally:
        os.close(fd)


def hidden(folder: Path, node: str) -> Path:
    """A new name in `folder` for what comes or goes. A node that starts removes all of its own: see `all_hidden`."""
    return folder / f".{node}~{secrets.token_hex(4)}"


def all_hidden(folder: Path, node: str) -> list[Path]:
    return sorted(folder.glob(f".{node}~*"))
