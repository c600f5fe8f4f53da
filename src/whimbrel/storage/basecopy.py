"""What of a folder has to cross to where a copy of its base is already: a container's files over its image's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from whimbrel.storage.confined import open_folder
from whimbrel.storage.listing import Difference, Lister, Listing

Facts = tuple[object, ...]


def beyond(base: Path, root: int, first: Difference) -> Difference:
    """The first look at the open folder `root`, without what is the same in `base`: by kind, owner, permissions, size,
    time, device and target. Contents are not compared."""
    lister = Lister(base)
    ours, theirs = _Folder(root), _Folder(lister.root)
    try:
        known, after = lister.look().after, first.after
        changed = {path for path in first.changed if path not in known or theirs.facts(path) != ours.facts(path)}
    finally:
        ours.close()
        theirs.close()
        lister.close()
    changed |= _other_names(changed, after)
    return Difference(first.before, after, sorted(changed), known.keys() - after.keys())


def _other_names(changed: set[str], after: Listing) -> set[str]:
    """A file crosses with all its names, or it would be two files there."""
    inodes = {after[path].inode for path in changed if after[path].links > 1 and stat.S_ISREG(after[path].mode)}
    if not inodes:
        return set()
    return {path for path, entry in after.items() if entry.inode in inodes and stat.S_ISREG(entry.mode)}


class _Folder:
    """Facts of files below an open folder; the last folder asked about is kept open for its neighbours."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._path, self._fd = "", -1

    def facts(self, path: str) -> Facts | None:
        """None for what vanished, or is behind a link by now."""
        folder, _, name = path.rpartition("/")
        try:
            if self._fd < 0 or folder != self._path:
                self.close()
                self._fd, self._path = open_folder(self._root, folder), folder
            status = os.stat(name or ".", dir_fd=self._fd, follow_symlinks=False)
            target = os.readlink(name, dir_fd=self._fd) if stat.S_ISLNK(status.st_mode) else ""
        except OSError:
            return None
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        return status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, status.st_rdev, target

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
