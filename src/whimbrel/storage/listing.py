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
from whimbrel.storage.watch import Touched, Watch

CLOCK_TICK_NS = 20_000_000
WATCHED_FROM = 1000
"""Fewer files are asked about in some milliseconds, and nothing has to be believed."""
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

    def __init__(self, folder: Path, *, without: str = "", watch: Watch | None = None) -> None:
        """`without`: a folder in it whose contents are left out. `watch` of the same folder, as its writer sees it:
        once there are many files, only those that it names are asked about again."""
        self._root = os.open(folder, FOLDER)
        self._without = without
        self._watch = watch
        self._unwatched: set[str] = set()
        self._touched: Touched | None = None
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

    def listen(self) -> None:
        """Before `look`, and before anybody asks what processes hold open: what they let go of after this is told at
        the next look, at the latest."""
        self._touched = self._watch.touched() if self._watch is not None else None

    def look(self, always: Collection[str] = (), held: Collection[str] | None = None) -> Difference:
        """Everything since the last look (the first time: all). `always` are paths to count as changed when they exist
        (`openfiles.mapped_files`), `held` those that may be written to without a word (`openfiles.held_files`; None:
        nobody knows them). Afterwards `allocated_bytes` is what all files take on disk, without holes, if nobody
        watches them."""
        written = self._written(always, held)
        if written is None:
            return self._look(always, None)
        # one long write moves the time once, and tells of itself at its end
        suspects = written.union(always, self._racy)
        asked = suspects.union(held or ())
        return (None if self._names_changed() else self._look_at(asked, suspects)) or self._look(suspects, asked)

    def look_at_folders(self) -> Difference:
        """The same for new, renamed and vanished names only, when nothing else can have changed: far fewer files
        are asked about than in `look`."""
        if not self._names_changed():
            return Difference(self._listing, self._listing, [], set())
        return self._look((), set(), names_only=True)

    def _names_changed(self) -> bool:
        return any(folder in self._racy or self._differs(folder) for folder in self._names)

    def _look_at(self, paths: Collection[str], suspects: Collection[str]) -> Difference | None:
        """No folder changed: only what these files are now. None when one of them has gone meanwhile."""
        now_ns = time.time_ns()
        before, after, changed, racy = self._listing, self._listing.copy(), [], set[str]()
        unwatched = {f"{folder}/{name}" if folder else name for folder in self._unwatched & self._names.keys()
                     for name in self._names[folder]}  # fmt: skip
        for path in unwatched.union(paths):
            if (old := before.get(path)) is None:
                continue
            if (status := self._status(path)) is None:
                return None
            after[path] = entry = _entry(old, status)
            if entry is not old or path in suspects:
                changed.append(path)
            if entry.ctime_ns > now_ns - CLOCK_TICK_NS:
                racy.add(path)
        self._listing, self._racy = after, racy
        changed.sort()
        return Difference(before, after, changed, set())

    def _written(self, always: Collection[str], held: Collection[str] | None) -> set[str] | None:
        """Files that were written to, as far as the watch can tell; None when all have to be asked about."""
        touched, self._touched = self._touched, None
        if touched is None or held is None or len(self._listing) < WATCHED_FROM:
            return None
        if any(path not in self._listing and path not in touched.made for path in (*always, *held)):
            return None  # known to its process by another name than ours
        inodes = set()
        for path in touched.written:
            if (entry := self._listing.get(path)) is not None:
                inodes.add(entry.inode)
            elif path not in touched.made:
                return None  # by a name that had gone before the first look: what others the file has, nobody knows
        if not inodes:
            return touched.written
        return touched.written.union(path for path, entry in self._listing.items() if entry.inode in inodes)

    def _status(self, path: str) -> os.stat_result | None:
        folder, _, name = path.rpartition("/")
        try:
            fd = open_folder(self._root, folder)
        except OSError:
            return None
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.close(fd)

    def _differs(self, folder: str) -> bool:
        try:
            status = os.stat(folder or ".", dir_fd=self._root, follow_symlinks=False)
        except OSError:
            return True
        return status.st_ctime_ns != self._listing[folder].ctime_ns

    def _look(
        self, always: Collection[str], written: Collection[str] | None, *, names_only: bool = False
    ) -> Difference:
        """`written`: of the files in folders that are as they were, only these are asked about; None: all."""
        now_ns = time.time_ns()
        before, after, changed = self._listing, Listing(), []
        names_before, self._names = self._names, {}
        allocated, several = 0, set[int]()
        # Time stamps are a tick coarse: what was written just now may be written again within the same one.
        suspects, racy = self._racy.union(always), set[str]()

        def note(path: str, status: os.stat_result) -> None:
            old = before.get(path)
            after[path] = entry = _entry(old, status)
            if entry is not old or (path in suspects and not names_only):
                changed.append(path)
            if entry.ctime_ns > now_ns - CLOCK_TICK_NS:
                racy.add(path)

        note("", os.fstat(self._root))
        pending = [""]
        while pending:
            folder = pending.pop()
            known = before.get(folder)
            same = known is not None and known is after[folder] and folder not in suspects
            if self._watch is not None and not same:  # before anything in it is asked about
                (self._unwatched.discard if self._watch.add(folder) else self._unwatched.add)(folder)
            asked = names = names_before.get(folder) if same else None
            if names is not None and written is not None and (names_only or folder not in self._unwatched):
                asked = []
                for name in names:
                    path = f"{folder}/{name}" if folder else name
                    if path in written or not (old := before.get(path)) or stat.S_ISDIR(old.mode):
                        asked.append(name)
                    else:
                        after[path] = old
                if not asked:
                    self._names[folder] = names
                    continue
            try:
                fd = open_folder(self._root, folder)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or refuses_path(error):
                    continue
                raise
            try:
                if names is None:
                    names = asked = os.listdir(fd) if not folder or folder != self._without else []
                self._names[folder] = names
                for name in asked or ():
                    path = f"{folder}/{name}" if folder else name
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
        if written is None:
            self.allocated_bytes = allocated
        else:
            for path in _other_names(before, after, changed):
                if (now := self._status(path)) is not None:
                    note(path, now)
        self._listing, self._racy = after, racy if not names_only else self._racy | racy
        changed.sort()
        return Difference(before, after, changed, before.keys() - after.keys())


def _entry(old: Entry | None, status: os.stat_result) -> Entry:
    """`old`, if nothing has changed since."""
    if old is not None and old.ctime_ns == status.st_ctime_ns and old.inode == status.st_ino:
        return old
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return Entry(status.st_ino, status.st_mode, size, status.st_ctime_ns, status.st_nlink)


def _other_names(before: Listing, after: Listing, changed: Collection[str]) -> list[str]:
    """Of files that got a name or lost one: paths that nobody asked about, though their number of links is another now.
    Whiteouts of an overlay are one file with many names, and never anything else."""
    entries = [after[path] for path in changed if path in after]
    entries += [before[path] for path in changed if path in before]
    entries += [entry for path, entry in before.items() if path not in after]
    inodes = {entry.inode for entry in entries if entry.links > 1 and not stat.S_ISCHR(entry.mode)
              and not stat.S_ISDIR(entry.mode)}  # fmt: skip
    if not inodes:
        return []
    return [path for path, entry in after.items() if entry.inode in inodes and entry is before.get(path)]


def allocated_bytes(folder: Path) -> int:
    """What the files below a folder take on disk: holes and second names are not counted."""
    lister = Lister(folder)
    try:
        lister.look()
    finally:
        lister.close()
    return lister.allocated_bytes
