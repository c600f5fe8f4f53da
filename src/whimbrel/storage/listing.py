"""What a writable folder holds, and what changed between two looks, by metadata alone."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from whimbrel.storage.confined import FOLDER, open_folder, refuses_path
from whimbrel.storage.devices import is_standard_node

CLOCK_TICK_NS = 20_000_000
BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's is


class Entry(NamedTuple):
    """`ctime_ns` moves with every change of contents or metadata, and is not a program's to set."""

    inode: int
    mode: int
    size: int
    ctime_ns: int
    links: int


Listing = dict[str, Entry]  # path relative to the folder ("" is itself) -> Entry


class Difference(NamedTuple):
    """Two looks, and what is not the same: `changed` (new or different, parents first) and `gone` paths."""

    before: Listing
    after: Listing
    changed: list[str]
    gone: set[str]


class Lister:
    """One folder, looked at again and again while others write into it. Blocks; about 2 us a file (a system call).

    Links are never followed, nor is a path whose folders are replaced meanwhile. The per-node device nodes of /dev
    are not listed. Files that vanish while they are looked at are left out: the folder's time has moved then, and the
    next look finds out.
    """

    def __init__(self, folder: Path, *, without: str = "") -> None:
        """`without`: a folder in it whose contents are left out."""
        self._root = os.open(folder, FOLDER)
        self._without = without
        self._listing: Listing = {}
        self._names: dict[str, list[str]] = {}  # folder -> what is in it
        self._racy: set[str] = set()
        self.allocated_bytes = 0

    def close(self) -> None:
        os.close(self._root)

    @property
    def root(self) -> int:
        """The open folder."""
        return self._root

    def look(self, always: Collection[str] = ()) -> Difference:
        """Everything since the last look (the first time: all). `always` are paths to count as changed when they exist
        (see `openfiles.mapped_files`). Afterwards `allocated_bytes` is what all files take on disk, without holes."""
        return self._look(always, only_folders=False)

    def look_at_folders(self) -> Difference:
        """The same for new, renamed and vanished names only, when nothing else can have changed: far fewer files
        are asked about than in `look`."""
        if not any(folder in self._racy or self._differs(folder) for folder in self._names):
            return Difference(self._listing, self._listing, [], set())
        return self._look((), only_folders=True)

    def _differs(self, folder: str) -> bool:
        try:
            status = os.stat(folder or ".", dir_fd=self._root, follow_symlinks=False)
        except OSError:
            return True
        return status.st_ctime_ns != self._listing[folder].ctime_ns

    def _look(self, always: Collection[str], *, only_folders: bool) -> Difference:
        now_ns = time.time_ns()
        before, after, changed = self._listing, Listing(), []
        names_before, self._names = self._names, {}
        allocated, several = 0, set[int]()
        # Time stamps are a tick coarse: what was written just now may be written again within the same one.
        suspects, racy = self._racy.union(always), set[str]()

        def note(path: str, status: os.stat_result) -> None:
            old = before.get(path)
            ctime_ns = status.st_ctime_ns
            if old is not None and old.ctime_ns == ctime_ns and old.inode == status.st_ino:
                after[path] = old
                if path in suspects and not only_folders:
                    changed.append(path)
            else:
                size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
                after[path] = Entry(status.st_ino, status.st_mode, size, ctime_ns, status.st_nlink)
                changed.append(path)
            if ctime_ns > now_ns - CLOCK_TICK_NS:
                racy.add(path)

        note("", os.fstat(self._root))
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                fd = open_folder(self._root, folder)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or refuses_path(error):
                    continue
                raise
            try:
                known = before.get(folder)
                same = known is not None and known is after[folder] and folder not in suspects
                names = names_before[folder] if same and folder in names_before else os.listdir(fd)
                if folder and folder == self._without:
                    names = []
                self._names[folder] = names
                for name in names:
                    path = f"{folder}/{name}" if folder else name
                    if only_folders and (old := before.get(path)) is not None and not stat.S_ISDIR(old.mode) and same:
                        after[path] = old
                        continue
                    try:
                        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    mode = status.st_mode
                    if stat.S_ISDIR(mode):
                        pending.append(path)
                    elif stat.S_ISCHR(mode) and is_standard_node(path, mode):
                        continue
                    elif status.st_nlink == 1 or status.st_ino not in several:
                        several.add(status.st_ino) if status.st_nlink > 1 else None
                        allocated += status.st_blocks * BLOCK_BYTES
                    note(path, status)
            finally:
                os.close(fd)
        if not only_folders:
            self.allocated_bytes = allocated
        self._listing, self._racy = after, racy if not only_folders else self._racy | racy
        changed.sort()
        return Difference(before, after, changed, before.keys() - after.keys())


def allocated_bytes(folder: Path) -> int:
    """What the files below a folder take on disk: holes and second names are not counted."""
    lister = Lister(folder)
    try:
        lister.look()
    finally:
        lister.close()
    return lister.allocated_bytes
