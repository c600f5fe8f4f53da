"""Filling a mounted overlay with what came from another overlay's writable layer.

There the layer says "nothing of the layers below shows in this folder" (opaque); here that is brought about by deleting
what shows. And a folder that lower layers have a part in cannot be renamed as a whole (EXDEV).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from whimbrel.storage.confined import delete, open_folder


class Merged:
    """Which paths of a merged folder came from the peer. `alone` are those at or below which no lower layer shows
    anything, and never will again: the overlay hides what was deleted there."""

    def __init__(self) -> None:
        self._brought: set[str] = set()
        self._alone: set[str] = set()

    def brought(self, path: str, *, alone: bool = False) -> None:
        self._brought.add(path)
        if alone and not self._is_alone(path):
            self._alone.add(path)

    def empty(self, root: int, path: str) -> None:
        """Delete what only lower layers have in the folder `path`; what was brought stays. Raises OSError."""
        if self._is_alone(path):
            return
        fd = open_folder(root, path)
        try:
            for name in os.listdir(fd):
                inside = f"{path}/{name}"
                if inside not in self._brought:
                    delete(fd, name)
                elif is_folder(fd, name):
                    self.empty(root, inside)
        finally:
            os.close(fd)
        self._alone.add(path)

    def shows(self, parent: int, name: str, path: str) -> bool:
        """Whether lower layers may show a folder at `path`."""
        try:
            return not self._is_alone(path) and is_folder(parent, name)
        except FileNotFoundError:
            return False

    def _is_alone(self, path: str) -> bool:
        while path and path not in self._alone:
            path = path.rpartition("/")[0]
        return bool(path)


def is_folder(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def move(from_folder: int, name: str, to_folder: int, new_name: str) -> None:
    """Rename; a folder that an overlay will not rename is made anew, and what is in it renamed. Raises OSError."""
    try:
        os.rename(name, new_name, src_dir_fd=from_folder, dst_dir_fd=to_folder)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    old = open_folder(from_folder, name)
    try:
        os.mkdir(new_name, 0o700, dir_fd=to_folder)
        new = open_folder(to_folder, new_name)
        try:
            for inside in os.listdir(old):
                move(old, inside, new, inside)
            status = os.fstat(old)
            os.chown(new, status.st_uid, status.st_gid)
            shutil.copystat(f"/proc/self/fd/{old}", f"/proc/self/fd/{new}")
        finally:
            os.close(new)
    finally:
        os.close(old)
    os.rmdir(name, dir_fd=from_folder)
