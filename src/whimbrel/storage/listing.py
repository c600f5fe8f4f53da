"""What a writable folder holds, and what changed between two looks, by metadata alone."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from whimbrel.storage.devices import is_standard_node


class Entry(NamedTuple):
    """`ctime_ns` moves with every change of contents or metadata, and is not a program's to set."""

    inode: int
    mode: int
    size: int
    ctime_ns: int
    links: int


Listing = dict[str, Entry]  # path relative to the folder -> Entry, parents before children


class Changes(NamedTuple):
    """`changed` (new or different, parents first) and `removed` (outermost only) paths."""

    changed: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


def snapshot(folder: Path) -> Listing:
    """Look at all of `folder` without following links; files that vanish meanwhile are left out.

    The per-node device nodes of /dev are not listed. About 2 us a file.
    """
    listing: Listing = {}
    root = os.fspath(folder)
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            entries = list(os.scandir(os.path.join(root, parent)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for item in entries:
            path = f"{parent}/{item.name}" if parent else item.name
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if is_standard_node(path, status.st_mode):
                continue
            is_folder = item.is_dir(follow_symlinks=False)
            listing[path] = Entry(
                status.st_ino,
                status.st_mode,
                0 if is_folder else status.st_size,
                status.st_ctime_ns,
                status.st_nlink,
            )
            if is_folder:
                pending.append(path)
    return listing


def changed(before: Listing, after: Listing, *, always: Iterable[str] = ()) -> Changes:
    """From `before` to `after`. `always` are paths to count as changed when they exist (see `mapped_files`).

    A new name of an old file changes the file's ctime, so all names of one file are changed together: the
    receiver can make it anew and link it again. A file whose last other name went away is changed too.
    """
    different = {path for path, entry in after.items() if before.get(path) != entry}
    different.update(path for path in always if path in after)
    gone = {path for path in before if path not in after}
    outermost = tuple(sorted(path for path in gone if not _has_parent_in(path, gone)))
    return Changes(tuple(sorted(different)), outermost)


def _has_parent_in(path: str, paths: set[str]) -> bool:
    parent = path.rpartition("/")[0]
    return bool(parent) and (parent in paths or _has_parent_in(parent, paths))


def differing(base: Path, folder: Path, after: Listing) -> Changes:
    """What makes `folder` (its listing is `after`) out of a copy of `base`, by type, owner, permissions, size, time
    and target; contents are not compared."""
    before = snapshot(base)
    different = [path for path in after if path not in before or _facts(base / path) != _facts(folder / path)]
    gone = {path for path in before if path not in after}
    outermost = tuple(sorted(path for path in gone if not _has_parent_in(path, gone)))
    return Changes(tuple(sorted(different)), outermost)


def _facts(path: Path) -> tuple[object, ...] | None:
    try:
        status = path.lstat()
        target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
    except FileNotFoundError:
        return None
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, status.st_rdev, target


BATCH_BYTES = 16 << 20


def batches(changes: Changes, listing: Listing, *, limit_bytes: int = BATCH_BYTES) -> Iterator[Changes]:
    """The same changes in pieces of about `limit_bytes` of contents, to be applied in order.

    All names of one file come together, in the piece of the last: its receiver links them. What is put into a folder
    later moves the folder's time, so the last of several pieces holds all folders once more.
    """
    last_name = {listing[path].inode: path for path in changes.changed if path in listing and _is_linked(listing[path])}
    waiting: dict[int, list[str]] = {}
    piece: list[str] = []
    removed, size, pieces = changes.removed, 0, 0
    for path in changes.changed:
        entry = listing.get(path)
        if entry is not None and entry.inode in last_name and _is_linked(entry):
            waiting.setdefault(entry.inode, []).append(path)
            if last_name[entry.inode] != path:
                continue
            piece += waiting.pop(entry.inode)
        else:
            piece.append(path)
        size += entry.size if entry is not None else 0
        if size >= limit_bytes:
            yield Changes(tuple(piece), removed)
            removed, piece, size, pieces = (), [], 0, pieces + 1
    if pieces:
        known = set(piece)
        folders = (path for path in changes.changed if path in listing and stat.S_ISDIR(listing[path].mode))
        piece += [path for path in folders if path not in known]
    if piece or removed:
        yield Changes(tuple(piece), removed)


def _is_linked(entry: Entry) -> bool:
    return entry.links > 1 and not stat.S_ISDIR(entry.mode)


_SHARED_MAPPING = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ .w.s [0-9a-f]+ \S+ [1-9][0-9]* +(/.*)$", re.MULTILINE)


def mapped_files(pids: Iterable[int]) -> set[str]:
    """Files that the processes map shared and writable, as paths inside the container without leading ``/``.

    A store into such a mapping need not move any time stamp, so the last look must not trust the stamps.
    """
    found: set[str] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for path in _SHARED_MAPPING.findall(maps):
            if not path.endswith(b" (deleted)"):
                found.add(os.fsdecode(path.replace(b"\\012", b"\n")).lstrip("/"))
    return found
