"""Which shared file system is this? Two nodes that read the same identity mount the same one."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from whimbrel.model.errors import BadInput

FOLDER = "whimbrel"
PARTS = ("nodes", "services", "migrations")
_IDENTITY = re.compile(r"[0-9a-f]{16}")


def identify(directory: Path) -> str:
    """The identity of the file system at `directory`; makes one where there is none yet.

    Many nodes may do that at once: each fills a folder of its own and renames it, which succeeds for the first only
    (a folder does not replace one that holds something). Then all read what is there. Raises BadInput, OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        return _read(directory)
    mine = directory / f".{FOLDER}-{secrets.token_hex(8)}"
    mine.mkdir(mode=0o700)
    try:
        for part in PARTS:
            (mine / part).mkdir()
        write_whole(mine / "id", secrets.token_hex(8))
        with contextlib.suppress(OSError):  # each file system has a number of its own for "there is one already"
            mine.rename(directory / FOLDER)
    finally:
        shutil.rmtree(mine, ignore_errors=True)
    return _read(directory)


def _read(directory: Path) -> str:
    path = directory / FOLDER / "id"
    text = path.read_text().strip()
    if not _IDENTITY.fullmatch(text):
        raise BadInput(f"{path} holds no identity but {text[:40]!r}: remove {path.parent} if nothing of it is needed")
    return text


def write_whole(path: Path, text: str) -> None:
    """Replace a file so that a reader on any node sees the old or the new text, and the new one is on the disk."""
    new = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
