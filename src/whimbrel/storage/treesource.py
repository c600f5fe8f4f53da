"""The source's half of carrying a folder: what changed since the last pass, as records (see `records`).

The folder may be written to all the while; a pass carries what it meets, and what it met half-written differs from
its digest at the next one. Only a pass over a folder that nobody writes to is exact. Blocks.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from whimbrel.model.errors import Refused
from whimbrel.model.units import format_bytes
from whimbrel.storage.basecopy import beyond
from whimbrel.storage.blocks import CHUNK_BYTES, DIGEST_BYTES, ZEROS, BlockTable, Digester, block_bytes_for, most_bytes
from whimbrel.storage.confined import open_folder, refuses_path
from whimbrel.storage.devices import is_harmless
from whimbrel.storage.listing import Difference, Entry, Lister
from whimbrel.storage.moves import NOT_MOVED, plan_steps
from whimbrel.storage.records import (
    XATTR_PREFIXES,
    Data,
    File,
    FileEnd,
    Folder,
    Forget,
    Link,
    Meta,
    Record,
    Removed,
    Special,
    Stash,
    Symlink,
    Unstash,
    Zeros,
)
from whimbrel.storage.watch import Watch

Emit = Callable[[Record], object]
Tell = Callable[[int], object]
"""Called with how many more bytes have been looked into, holes and all."""

_HOLES_FROM_BYTES = 1 << 16  # a smaller file is read whole: asking for its holes costs more


class TreeSource:
    """One folder that crosses: all of it in the first pass, then only what changed."""

    def __init__(
        self,
        folder: Path,
        digester: Digester,
        *,
        without: str = "",
        base: Path | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`without`: a folder in it whose contents do not cross. `base`: of this the destination's folder is a copy
        already, so in the first pass only what is not the same crosses. `watch`: see `Lister`."""
        self._folder = folder
        self._lister = Lister(folder, without=without, watch=watch)
        self._base, self._over_base = base, base is not None
        self._digester = digester
        self._tables: dict[int, BlockTable] = {}
        self._buffer = bytearray(CHUNK_BYTES)
        self._parent_path, self._parent_fd = "", -1
        self._difference: Difference | None = None
        self._tell: Tell = lambda count: None

    def close(self) -> None:
        self._leave_parent()
        self._lister.close()

    def listen(self) -> None:
        """See `Lister.listen`."""
        self._lister.listen()

    def look(self, always: Collection[str] = (), held: Collection[str] | None = None) -> int:
        """Begin a pass; `send` carries it out. Returns the bytes of the files that will be looked into. `always`: paths
        to look into whatever their times say; `held`: see `Lister.look`."""
        difference = self._lister.look(always, held)
        if self._base is not None:
            difference, self._base = beyond(self._base, self._lister.root, difference), None
        self._difference = self._whole(difference)
        return sum(difference.after[path].size for path in difference.changed)

    def look_at_names(self) -> None:
        """Begin a pass over a folder in which no file was written to since the last one, but names may have come and
        gone."""
        self._difference = self._whole(self._lister.look_at_folders())

    def _whole(self, difference: Difference) -> Difference:
        """A file that the base has crosses whole when it changes for the first time, and is another one there then. So
        all its names are new ones."""
        if not self._over_base:
            return difference
        before, after, changed, gone = difference
        inodes = {after[path].inode for path in changed if stat.S_ISREG(after[path].mode)} - self._tables.keys()
        names = {
            path
            for path, entry in before.items()
            if entry.inode in inodes and path in after and after[path].inode == entry.inode
        }
        if not names:
            return difference
        before = {path: entry for path, entry in before.items() if path not in names}
        return Difference(before, after, sorted(names.union(changed)), gone)

    def send(self, emit: Emit, tell: Tell | None = None) -> None:
        """Carry out the pass. A record's contents are valid only until `emit` returns."""
        difference, self._difference = self._difference, None
        if difference is None or not (difference.changed or difference.gone):
            return
        self._tell = tell or self._tell
        plan, after = plan_steps(difference), difference.after
        for path, ticket in plan.stashes:
            emit(Stash(os.fsencode(path), ticket, self._over_base))
        for path in plan.removed:
            emit(Removed(os.fsencode(path)))
        for path, ticket in plan.placed:
            if ticket != NOT_MOVED:
                emit(Unstash(ticket, os.fsencode(path)))
            self._send_if_there(path, after[path], emit)
        for path in plan.removed_late:
            emit(Removed(os.fsencode(path)))
        for path, target in plan.links:
            if after[path].inode in self._tables:
                emit(Link(os.fsencode(path), os.fsencode(target)))
            else:  # the other name vanished before it was read
                self._send_if_there(path, after[path], emit)
        forgotten = tuple(inode for inode in plan.forgotten if self._tables.pop(inode, None) is not None)
        if forgotten:
            emit(Forget(forgotten))
        self._leave_parent()

    def _send_if_there(self, path: str, entry: Entry, emit: Emit) -> None:
        """What vanishes, or is replaced, while it is read is left out: the next look finds out."""
        try:
            self._send_one(path, entry, emit)
        except FileNotFoundError:
            return
        except OSError as error:
            # ENXIO: a socket took the place of a file
            if not refuses_path(error) and error.errno != errno.ENXIO:
                raise

    def _send_one(self, path: str, entry: Entry, emit: Emit) -> None:
        raw = os.fsencode(path)
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFDIR:
            fd = self._enter(path)  # what comes next is most likely in it
            emit(Folder(raw, _meta(os.fstat(fd), fd)))
            return
        parent, name = self._parent(path)
        if kind == stat.S_IFREG:
            self._send_file(raw, parent, name, entry, emit)
            return
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_IFMT(status.st_mode) != kind:
            return
        at = f"/proc/self/fd/{parent}/{name}"
        if kind == stat.S_IFLNK:
            emit(Symlink(raw, os.fsencode(os.readlink(name, dir_fd=parent)), _meta(status, at)))
        elif kind == stat.S_IFIFO:
            emit(Special(raw, _meta(status, at)))
        elif kind == stat.S_IFCHR and (status.st_rdev == 0 or is_harmless(_device(status))):
            emit(Special(raw, _meta(status, at), _device(status)))
        elif kind == stat.S_IFSOCK:
            emit(Removed(raw))  # CRIU makes sockets anew; what had the name before must not be in the way
        else:
            raise Refused(f"{self._folder / path} is a device node, which may not cross between nodes: remove it")

    def _send_file(self, raw: bytes, parent: int, name: str, entry: Entry, emit: Emit) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            status = os.fstat(fd)
            if status.st_ino != entry.inode or not stat.S_ISREG(status.st_mode):
                return  # replaced since the look: the next one finds it
            size = status.st_size
            table = self._tables.get(entry.inode)
            fresh = table is None
            if table is None:
                table = self._tables[entry.inode] = BlockTable(block_bytes_for(size))
            if size > most_bytes(table.block_bytes):
                raise Refused(
                    f"{self._folder / os.fsdecode(raw)} is too large, or grew too much while it was copied: it has "
                    f"{format_bytes(size)}"
                )
            table.resize(size)
            emit(File(raw, entry.inode, fresh, size, table.block_bytes, _meta(status, fd)))
            if size <= _HOLES_FROM_BYTES:
                self._send_data(fd, 0, size, table, emit)
            else:
                for start, end, hole in _stretches(fd, size, table.block_bytes):
                    if hole:
                        self._send_hole(start, end, table, emit)
                    else:
                        self._send_data(fd, start, end, table, emit)
            emit(FileEnd(self._digester.whole(table.digests, size)))
        finally:
            os.close(fd)

    def _send_hole(self, start: int, end: int, table: BlockTable, emit: Emit) -> None:
        slot = table.slot(start, end - start)
        zeros = bytes(slot.stop - slot.start)
        if table.digests[slot] != zeros:
            emit(Zeros(start, end - start))
            table.digests[slot] = zeros
        self._tell(end - start)

    def _send_data(self, fd: int, start: int, end: int, table: BlockTable, emit: Emit) -> None:
        chunk_bytes = max(CHUNK_BYTES, table.block_bytes)
        if len(self._buffer) < chunk_bytes:
            self._buffer = bytearray(chunk_bytes)
        for offset in range(start, end, chunk_bytes):
            with memoryview(self._buffer)[: min(chunk_bytes, end - offset)] as content:
                _read_whole(fd, content, offset)
                digests = self._digester.blocks(content, table.block_bytes)
                slot = table.slot(offset, len(content))
                if table.digests[slot] != digests:
                    for first, last, zero in _changed_runs(table.digests[slot], digests):
                        low = first * table.block_bytes
                        high = min(last * table.block_bytes, len(content))
                        if zero:
                            emit(Zeros(offset + low, high - low))
                        else:
                            run = digests[first * DIGEST_BYTES : last * DIGEST_BYTES]
                            emit(Data(offset + low, content[low:high], run))
                    table.digests[slot] = digests
                self._tell(len(content))

    def _parent(self, path: str) -> tuple[int, str]:
        """The folder of `path`, kept open for its neighbours."""
        folder, _, name = path.rpartition("/")
        if self._parent_fd < 0 or folder != self._parent_path:
            self._enter(folder)
        return self._parent_fd, name

    def _enter(self, folder: str) -> int:
        self._leave_parent()
        self._parent_fd, self._parent_path = open_folder(self._lister.root, folder), folder
        return self._parent_fd

    def _leave_parent(self) -> None:
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
            self._parent_fd = -1


def _meta(status: os.stat_result, at: int | str) -> Meta:
    try:
        names = os.listxattr(at) if isinstance(at, int) else os.listxattr(at, follow_symlinks=False)
        xattrs = {
            name: os.getxattr(at, name) if isinstance(at, int) else os.getxattr(at, name, follow_symlinks=False)
            for name in names
            if name.startswith(XATTR_PREFIXES)
        }
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA):
            raise
        xattrs = {}
    return Meta(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


def _device(status: os.stat_result) -> tuple[int, int]:
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def _stretches(fd: int, size: int, block_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, is a hole) over a whole file, in whole blocks; a block that is data in part counts as data."""
    at = 0
    while at < size:
        try:
            data = min(os.lseek(fd, at, os.SEEK_DATA), size)
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = hole = size  # no more data
        data -= data % block_bytes if data < size else 0
        hole = min(-(-hole // block_bytes) * block_bytes, size)
        if data > at:
            yield at, data, True
        if hole > data:
            yield max(data, at), hole, False
        at = max(hole, at + block_bytes)


def _read_whole(fd: int, content: memoryview, offset: int) -> None:
    """A file that becomes shorter meanwhile reads as zeros there; it is changed again at the next look."""
    while content:
        count = os.preadv(fd, [content], offset)
        if count == 0:
            content[:] = bytes(len(content))
            return
        content, offset = content[count:], offset + count


def _changed_runs(before: bytes | bytearray, now: bytes) -> Iterator[tuple[int, int, bool]]:
    """(first, last + 1, all zeros) of neighbouring blocks whose digests differ."""
    start, kind = -1, False
    count = len(now) // DIGEST_BYTES
    if count and ZEROS not in now and not any(before):
        yield 0, count, False  # all of it is new
        return
    for number in range(count + 1):
        at = slice(number * DIGEST_BYTES, (number + 1) * DIGEST_BYTES)
        differs = number < count and before[at] != now[at]
        zero = differs and now[at] == ZEROS
        if start >= 0 and (not differs or zero != kind):
            yield start, number, kind
            start = -1
        if differs and start < 0:
            start, kind = number, zero
