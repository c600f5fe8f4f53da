"""A folder on the shared file system for the images of one migration. The source's node makes it and owns it; either
side may remove it; what a crash leaves, its owner removes when it starts again."""

from __future__ import annotations

import contextlib
from pathlib import Path

from whimbrel.model.errors import Conflict
from whimbrel.storage.shared.copying import remove_tree
from whimbrel.storage.shared.marker import FOLDER, write_whole
from whimbrel.storage.shared.paths import all_hidden, hidden


def open_folder(directory: str, migration: str, node: str) -> str:
    """Make it. Returns its path here; on the other node it is at the same place below the directory. Raises
    Conflict."""
    folder = _folder(directory, migration)
    new = hidden(folder.parent, node)
    new.mkdir(mode=0o700)
    write_whole(new / "owner", node)  # before it bears its name: there is none without an owner
    if folder.exists():
        remove_tree(new)
        raise Conflict(f"the shared file system has a folder of migration {migration} already")
    new.rename(folder)
    return str(folder)


def remove_folder(directory: str, migration: str, node: str) -> None:
    """Safe to repeat, on either node."""
    _remove(_folder(directory, migration), node)


def sweep(directory: str, node: str, keep: list[str]) -> list[str]:
    """For a node that starts: remove the folders of its migrations that are over (all but `keep`), and what it was
    removing or making when it ended. Returns the names of the former."""
    removed = []
    top = Path(directory, FOLDER)
    for folder in sorted((top / "migrations").iterdir()):
        with contextlib.suppress(OSError):
            if (folder / "owner").read_text() == node and folder.name not in keep and not folder.name.startswith("."):
                _remove(folder, node)
                removed.append(folder.name)
    for leftover in (*all_hidden(top / "migrations", node), *all_hidden(top / "services", node)):
        remove_tree(leftover)
    return removed


def _folder(directory: str, migration: str) -> Path:
    return Path(directory, FOLDER, "migrations", migration)


def _remove(folder: Path, node: str) -> None:
    gone = hidden(folder.parent, node)
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    remove_tree(gone)
