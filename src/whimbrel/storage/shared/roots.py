"""Root file systems of services on the shared file system. One node owns each: only it may run the service or delete
it.

    services/<name>/owner          the node's name
                   /service.json   what another node must know to run it
                   /root           the whole root file system, a copy of the image's

A copy, because overlayfs wants features of its upper layer that no network file system has. It is made once, when the
service starts; a migration only changes the owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from whimbrel.model.errors import BadInput, Refused
from whimbrel.storage.mounts import bind
from whimbrel.storage.shared.copying import copy_tree, remove_tree
from whimbrel.storage.shared.marker import FOLDER, write_whole
from whimbrel.storage.shared.paths import all_hidden, hidden, open_below

# CRIU's own temporary names for files without one (criu/files-reg.c): a restore or a dump that was killed leaves them.
_REMAP = re.compile(r"link_remap\.\d+|.*\.cr\.[0-9a-f]+\.ghost")
_DELETED = " (deleted)"


def fill(directory: str, name: str, node: str, image_rootfs: str, upper: str, local: list[str], about: Any) -> None:
    """Copy an image's root file system there for a new service; the folders named in `local` go to the node's own
    `upper` instead. `about` is what `describe` will tell other nodes. Raises BadInput when the name is taken."""
    folder = _folder(directory, name)
    if folder.exists():
        owner = _owner(folder)
        if owner != node:
            raise BadInput(
                f"the shared file system at {directory} has a service {name} already, of node {owner or 'unknown'}: "
                f"choose another name, or remove that one there"
            )
        _delete(folder, node)  # ours, and we know nothing of it: left behind when this node was set up anew
    folder.mkdir(mode=0o755)  # the services' own users walk through it
    write_whole(folder / "owner", node)
    write_whole(folder / "service.json", json.dumps(about))
    copy_tree(Path(image_rootfs), folder / "root.new", leave_out=local)
    for part in local:
        source, target = Path(image_rootfs, part), Path(upper, part)
        (folder / "root.new" / part).mkdir(exist_ok=True)
        if part != "dev" and source.is_dir() and not target.exists():  # an image's own /dev is hidden
            copy_tree(source, target)
    (folder / "root.new").rename(folder / "root")


def attach(directory: str, name: str, node: str, target: str, local: dict[str, str]) -> None:
    """Mount the root at `target`, and over its folders named in `local` the ones given there. Raises Refused when it is
    not there, or another node's."""
    folder = _require(directory, name)
    owner = _owner(folder)
    if owner != node:
        raise Refused(f"the root file system of {name} belongs to node {owner or 'unknown'}, not to {node}")
    bind(folder / "root", Path(target))
    for part, source in local.items():
        bind(Path(source), Path(target, part))


def describe(directory: str, name: str) -> Any:
    """What `fill` was given as `about`. Raises Refused when there is no such service."""
    return json.loads((_require(directory, name) / "service.json").read_text())


def claim(directory: str, name: str, node: str, before: str = "") -> None:
    """From now on the root is `node`'s; with `before`, only if it was that node's."""
    folder = _folder(directory, name)
    if folder.exists() and (not before or _owner(folder) == before):
        write_whole(folder / "owner", node)


def remove(directory: str, name: str, node: str) -> bool:
    """Delete the root if it is `node`'s; False when it is another's, or gone."""
    folder = _folder(directory, name)
    if not folder.exists() or _owner(folder) not in (node, ""):
        return False
    _delete(folder, node)
    return True


def sweep(directory: str, node: str) -> None:
    """What the node was deleting when it ended goes."""
    for leftover in all_hidden(Path(directory, FOLDER, "services"), node):
        remove_tree(leftover)


def tidy(root: str, pids: list[int]) -> None:
    """Remove what CRIU left of a dump or restore that was killed, next to the deleted files that `pids` have open."""
    for folder in sorted({os.path.dirname(path) for path in _deleted_files(pids)}):
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            open_below(root, folder, os.O_RDONLY | os.O_DIRECTORY) as fd,
        ):
            for name in os.listdir(fd):
                if _REMAP.fullmatch(name):
                    os.unlink(name, dir_fd=fd)


def _deleted_files(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found |= {link.removesuffix(_DELETED) for link in links if link.startswith("/") and link.endswith(_DELETED)}
    return found


def _folder(directory: str, name: str) -> Path:
    return Path(directory, FOLDER, "services", name)


def _require(directory: str, name: str) -> Path:
    folder = _folder(directory, name)
    if not (folder / "root").is_dir():
        raise Refused(f"the shared file system at {directory} has no root file system of {name}")
    return folder


def _owner(folder: Path) -> str:
    """ "" when there is none: whoever made the folder died at once."""
    try:
        return (folder / "owner").read_text()
    except FileNotFoundError:
        return ""


def _delete(folder: Path, node: str) -> None:
    """Out of the way first: nobody must find half of a root under its name."""
    gone = hidden(folder.parent, node)
    folder.rename(gone)
    remove_tree(gone)
