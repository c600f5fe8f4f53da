"""The destination's half of carrying a folder: records are applied in place, and everything written is read back.

The peer is not trusted: nothing is reached through a link, nothing outside the folder is touched, tables are bounded.
Nobody else may use the folder meanwhile. Blocks.

The folder may show lower layers too (another engine's mounted container): what came there from an overlay's writable
layer is not stored but carried out (see `merged`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from whimbrel.model.errors import BadInput, StepFailed, WhimbrelError
from whimbrel.storage.blocks import BLOCK_SIZES, CHUNK_BYTES, BlockTable, Digester, most_bytes
from whimbrel.storage.confined import FOLDER, delete, open_folder, plain, refuses_path, status_of
from whimbrel.storage.devices import is_harmless
from whimbrel.storage.merged import Merged, is_folder, move
from whimbrel.storage.records import (
    OPAQUE,
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

FEW_FILES = 64
_DEFAULT_ACL = "system.posix_acl_default"
_STASH = ".whimbrel-moving"
_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class _Open:
    """The file that records are about just now. `made`: as it was when it was made here, if it was; it has no attribute
    then that nobody gave it (`bare`). `end`: so far its contents are known to reach."""

    __slots__ = ("bare", "end", "fd", "made", "order", "table")

    def __init__(self, fd: int, order: File, table: BlockTable) -> None:
        self.fd, self.order, self.table = fd, order, table
        self.made: os.stat_result | None = None
        self.bare = False
        self.end = 0


class TreeSink:
    """One folder that fills. Everything raises BadInput for a peer that does not keep the rules, StepFailed for what
    arrived damaged, WhimbrelError when the disk refuses; then the caller throws the folder away."""

    def __init__(self, folder: Path, digester: Digester, *, merged: bool = False) -> None:
        """`merged`: the folder is an overlay of its own, so that a whiteout means "delete" there, and an opaque folder
        "delete what the lower layers show in it"."""
        self._folder = folder
        self._merged = Merged() if merged else None
        # A writable layer gives the inode of a folder that is gone to the next one, which looks as if it had moved.
        # Where lower layers show a folder, one that really moved there is opaque; until that is known it waits.
        self._layer_folders: set[int] = set()
        self._undecided: dict[str, int] = {}
        self._root = os.open(folder, FOLDER)
        self._digester = digester
        self._tables: dict[int, tuple[BlockTable, int]] = {}
        self._file: _Open | None = None
        self._buffer = bytearray(CHUNK_BYTES)
        self._times: dict[str, int] = {}
        self._stashed = False
        self._parent_path, self._parent_fd = b"", -1
        self._parent_gives_acl = False
        self._written: set[bytes] = set()
        self._apply: dict[type[Record], Callable[[Any], None]] = {
            Stash: self._on_stash,
            Unstash: self._on_unstash,
            Folder: self._on_folder,
            Symlink: self._on_symlink,
            Special: self._on_special,
            Link: self._on_link,
            File: self._on_file,
            Data: self._on_data,
            Zeros: self._on_zeros,
            FileEnd: self._on_file_end,
            Removed: self._on_removed,
            Forget: self._on_forget,
        }

    def close(self) -> None:
        self._leave_parent()
        if self._file is not None:
            os.close(self._file.fd)
            self._file = None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def apply(self, records: Iterable[Record]) -> None:
        with self._telling():
            for record in records:
                self._apply[type(record)](record)

    def end_pass(self) -> None:
        """Everything of a pass has come: folders get their times, nothing may be left half-way."""
        if self._file is not None:
            raise BadInput("a pass ended in the middle of a file")
        with self._telling():
            self._leave_parent()
            if self._stashed:
                for ticket in self._undecided.values():
                    with self._stash_folder() as stash:
                        delete(stash, str(ticket))
                self._undecided.clear()
                self._layer_folders.clear()
                os.rmdir(_STASH, dir_fd=self._root)
                self._stashed = False
            for path, mtime_ns in self._times.items():
                with _missing_is_fine():
                    fd = open_folder(self._root, path)
                    try:
                        os.utime(fd, ns=(mtime_ns, mtime_ns))
                    finally:
                        os.close(fd)
            self._times.clear()

    def settle(self) -> None:
        """Bring what was written to the disk, so that a power failure here takes no more than it would have taken at
        the source. A few files one by one; for many the whole file system."""
        written, self._written = self._written, set()
        if len(written) > FEW_FILES:
            if _libc.syncfs(self._root) != 0:
                number = ctypes.get_errno()
                raise WhimbrelError(f"cannot write the files below {self._folder} to disk: {os.strerror(number)}")
            return
        for path in written:
            # The service runs by now and may have removed it, or have put something else there.
            with contextlib.suppress(OSError), self._folder_of(path) as (parent, name):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{error.filename or ''} below {self._folder}".lstrip()
            if refuses_path(error):
                raise BadInput(f"{where} would be written through something that is no folder") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise WhimbrelError(
                    f"no space is left for the files {where}: free some, or choose another node"
                ) from error
            raise WhimbrelError(f"cannot write {where}: {error.strerror}") from error

    # --- names --------------------------------------------------------------------------------------------
    def _on_stash(self, record: Stash) -> None:
        self._leave_parent()
        if not self._stashed:
            self._times.setdefault("", os.fstat(self._root).st_mtime_ns)
            os.mkdir(_STASH, 0o700, dir_fd=self._root)
            self._stashed = True
        with _missing_is_fine(), self._folder_of(record.path) as (parent, name), self._stash_folder() as stash:
            if self._merged is not None and not record.whole and is_folder(parent, name):
                self._layer_folders.add(record.ticket)
                self._merged.empty(self._root, os.fsdecode(record.path))
            move(parent, name, stash, str(record.ticket))

    def _on_unstash(self, record: Unstash) -> None:
        parent, name = self._parent(record.path)
        path = os.fsdecode(record.path)
        if record.ticket in self._layer_folders and self._merged is not None and self._merged.shows(parent, name, path):
            self._undecided[path] = record.ticket
        else:
            self._place(record.ticket, path)

    def _place(self, ticket: int, path: str) -> None:
        parent, name = self._parent(os.fsencode(path))
        delete(parent, name)
        if self._merged is not None:
            self._merged.brought(path, alone=True)
        with _missing_is_fine(), self._stash_folder() as stash:
            move(stash, str(ticket), parent, name)

    @contextlib.contextmanager
    def _stash_folder(self) -> Iterator[int]:
        stash = open_folder(self._root, _STASH)
        try:
            yield stash
        finally:
            os.close(stash)

    def _on_folder(self, record: Folder) -> None:
        path = os.fsdecode(record.path)
        if path:
            ticket = self._undecided.get(path)
            if ticket is not None and OPAQUE in record.meta.xattrs:
                self._place(self._undecided.pop(path), path)
            parent, name = self._parent(record.path)
            status = status_of(parent, name)
            if status is None or not stat.S_ISDIR(status.st_mode):
                delete(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
                status = None
            if self._merged is not None:
                self._merged.brought(path, alone=status is None)
                if OPAQUE in record.meta.xattrs:
                    self._merged.empty(self._root, path)
        fd = self._enter(record.path)  # what comes next is most likely in it
        self._set_meta(record.meta, fd)
        self._parent_gives_acl = _gives_acl(fd)
        self._times[path] = record.meta.mtime_ns

    def _on_symlink(self, record: Symlink) -> None:
        parent, name = self._parent(record.path)
        self._note(record.path)
        if not _is_link_to(parent, name, record.target):  # a needless new one would move the folder's time
            delete(parent, name)
            os.symlink(record.target, name, dir_fd=parent)
        os.chown(name, record.meta.uid, record.meta.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(record.meta.mtime_ns,) * 2, dir_fd=parent, follow_symlinks=False)

    def _on_special(self, record: Special) -> None:
        kind = stat.S_IFMT(record.meta.mode)
        whiteout = kind == stat.S_IFCHR and record.device == (0, 0)  # this path is deleted
        if not whiteout and not (kind == stat.S_IFCHR and is_harmless(record.device)) and kind != stat.S_IFIFO:
            raise BadInput(f"{os.fsdecode(record.path)} is a device node, which may not cross between nodes")
        if whiteout and self._merged is not None:
            self._on_removed(Removed(record.path))
            return
        parent, name = self._parent(record.path)
        self._note(record.path)
        status, device = status_of(parent, name), os.makedev(*record.device) if kind == stat.S_IFCHR else 0
        if status is None or stat.S_IFMT(status.st_mode) != kind or status.st_rdev != device:
            delete(parent, name)
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        self._set_meta(record.meta, f"/proc/self/fd/{parent}/{name}")
        os.utime(name, ns=(record.meta.mtime_ns,) * 2, dir_fd=parent, follow_symlinks=False)

    def _on_link(self, record: Link) -> None:
        try:
            with self._folder_of(record.target) as (target_parent, target):
                status = status_of(target_parent, target)
                if status is None or not stat.S_ISREG(status.st_mode):
                    raise FileNotFoundError
                parent, name = self._parent(record.path)
                self._note(record.path)
                self._keep_time(parent, name)
                delete(parent, name)
                os.link(target, name, src_dir_fd=target_parent, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise BadInput(f"{os.fsdecode(record.target)!r} is to get another name, and never arrived") from None

    def _on_removed(self, record: Removed) -> None:
        self._leave_parent()
        with _missing_is_fine(), self._folder_of(record.path) as (parent, name):
            delete(parent, name)

    @contextlib.contextmanager
    def _folder_of(self, raw: bytes) -> Iterator[tuple[int, str]]:
        """The folder of a path as it is; raises FileNotFoundError without one."""
        folder, _, name = plain(os.fsdecode(raw)).rpartition("/")
        parent = open_folder(self._root, folder)
        try:
            yield parent, name
        finally:
            os.close(parent)

    def _on_forget(self, record: Forget) -> None:
        for number in record.ids:
            self._tables.pop(number, None)

    # --- contents -----------------------------------------------------------------------------------------
    def _on_file(self, order: File) -> None:
        if self._file is not None:
            raise BadInput("a file began before the last one ended")
        if order.block_bytes not in BLOCK_SIZES or not 0 <= order.size_bytes <= most_bytes(order.block_bytes):
            raise BadInput(f"{os.fsdecode(order.path)!r} has a size that cannot be meant: {order.size_bytes} bytes")
        parent, name = self._parent(order.path)
        self._note(order.path)
        if order.fresh:
            fd = self._make_file(parent, name, order.meta.mode)
            table = BlockTable(order.block_bytes)
            self._file = _Open(fd, order, table)
            self._file.made = made = os.fstat(fd)
            self._file.bare = not self._parent_gives_acl
            self._tables[order.id] = table, made.st_ino
        else:
            table, inode = self._tables.get(order.id, (BlockTable(0), 0))
            status = status_of(parent, name)
            if inode == 0 or status is None or status.st_ino != inode or table.block_bytes != order.block_bytes:
                raise BadInput(f"{os.fsdecode(order.path)!r} is not the file that crossed before")
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            self._file = _Open(fd, order, table)
            if table.size_bytes != order.size_bytes:
                os.ftruncate(fd, order.size_bytes)
            self._file.end = order.size_bytes
        table.resize(order.size_bytes)
        self._written.add(order.path)

    def _current(self, offset: int, length: int) -> _Open:
        file = self._file
        if file is None:
            raise BadInput("contents came for no file")
        size, block = file.order.size_bytes, file.table.block_bytes
        end = offset + length
        if offset < 0 or length <= 0 or offset % block or end > size or (end % block and end != size):
            raise BadInput(f"contents came for no blocks of {os.fsdecode(file.order.path)!r}")
        return file

    def _on_data(self, record: Data) -> None:
        length = len(record.content)
        file = self._current(record.offset, length)
        slot = file.table.slot(record.offset, length)
        if slot.stop - slot.start != len(record.digests):
            raise BadInput(f"contents of {os.fsdecode(file.order.path)!r} came without their digests")
        _write_whole(file.fd, memoryview(record.content), record.offset)
        self._check(file, record.offset, length, record.digests)
        file.end = max(file.end, record.offset + length)
        file.table.digests[slot] = record.digests

    def _on_zeros(self, record: Zeros) -> None:
        file = self._current(record.offset, record.length)
        _punch(file.fd, record.offset, record.length)
        slot = file.table.slot(record.offset, record.length)
        file.table.digests[slot] = bytes(slot.stop - slot.start)

    def _check(self, file: _Open, offset: int, length: int, digests: bytes) -> None:
        """What the file holds now must have the digests that it had at the source."""
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        with memoryview(self._buffer)[:length] as content:
            read = os.preadv(file.fd, [content], offset)
            if read != length or self._digester.blocks(content, file.table.block_bytes) != digests:
                raise self._damaged(file, f"bytes {offset} to {offset + length}")

    def _on_file_end(self, record: FileEnd) -> None:
        file, self._file = self._current_any(), None
        try:
            if self._digester.whole(file.table.digests, file.order.size_bytes) != record.digest:
                raise self._damaged(file, "its digest")
            if file.end < file.order.size_bytes:  # what is at its end is a hole
                os.ftruncate(file.fd, file.order.size_bytes)
            self._set_meta(file.order.meta, file.fd, file.made, bare=file.bare)
            os.utime(file.fd, ns=(file.order.meta.mtime_ns,) * 2)
        finally:
            os.close(file.fd)

    def _current_any(self) -> _Open:
        if self._file is None:
            raise BadInput("a file ended that never began")
        return self._file

    def _damaged(self, file: _Open, what: str) -> StepFailed:
        return StepFailed(
            f"{self._folder / os.fsdecode(file.order.path)} is not what the source sent: {what} differ; the link, the "
            "memory or the disk of one side damages data"
        )

    # --- metadata and places ------------------------------------------------------------------------------
    def _set_meta(self, meta: Meta, at: int | str, have: os.stat_result | None = None, *, bare: bool = False) -> None:
        """Owner, mode and extended attributes, exactly these; not the time, which what follows would change. `have`:
        what is so already, as far as that is known; `bare`: there are no attributes yet."""
        owned = have is not None and have.st_uid == meta.uid and have.st_gid == meta.gid
        if not owned:
            os.chown(at, meta.uid, meta.gid)
        if not (owned and bare and have is not None and stat.S_IMODE(have.st_mode) == stat.S_IMODE(meta.mode)):
            os.chmod(at, stat.S_IMODE(meta.mode))
        for name in () if bare else os.listxattr(at):
            if name.startswith(XATTR_PREFIXES) and name not in meta.xattrs:
                with contextlib.suppress(OSError):  # a plain ACL goes when the mode is set
                    os.removexattr(at, name)
        for name, value in meta.xattrs.items():
            if name.startswith(XATTR_PREFIXES) and not (name == OPAQUE and self._merged is not None):
                os.setxattr(at, name, value)

    def _parent(self, raw: bytes) -> tuple[int, str]:
        """The folder of a path, made if it is not there; kept open for its neighbours."""
        folder, slash, last = raw.rpartition(b"/")
        # the path of the open folder was found plain
        if last in (b"", b".", b"..") or b"\0" in last or folder != self._parent_path or (slash and not folder):
            plain(os.fsdecode(raw))
        if self._parent_fd < 0 or folder != self._parent_path:
            try:
                self._enter(folder)
            except FileNotFoundError:
                self._make_folders(os.fsdecode(folder))
                self._enter(folder)
            self._parent_gives_acl = _gives_acl(self._parent_fd)
        return self._parent_fd, os.fsdecode(last)

    def _enter(self, folder: bytes) -> int:
        self._leave_parent()
        self._parent_fd, self._parent_path = open_folder(self._root, os.fsdecode(folder)), folder
        return self._parent_fd

    def _make_folders(self, path: str) -> None:
        """Folders that vanished while the source read them, and came back before their files were read."""
        parts = path.split("/")
        for depth in range(len(parts)):
            parent = open_folder(self._root, "/".join(parts[:depth]))
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(parts[depth], 0o700, dir_fd=parent)
                    if self._merged is not None:
                        self._merged.brought("/".join(parts[: depth + 1]), alone=True)
            finally:
                os.close(parent)

    def _make_file(self, parent: int, name: str, mode: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, flags, mode & 0o777, dir_fd=parent)
        except FileExistsError:
            self._keep_time(parent, name)
            delete(parent, name)
            return os.open(name, flags, mode & 0o777, dir_fd=parent)

    def _keep_time(self, parent: int, name: str) -> None:
        """What is there is about to be replaced by itself, which leaves the folder as it was at the source."""
        if status_of(parent, name) is not None:
            self._times.setdefault(os.fsdecode(self._parent_path), os.fstat(parent).st_mtime_ns)

    def _note(self, path: bytes) -> None:
        if self._merged is not None:
            self._merged.brought(os.fsdecode(path))

    def _leave_parent(self) -> None:
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
            self._parent_fd = -1


def _is_link_to(parent: int, name: str, target: bytes) -> bool:
    try:
        return os.readlink(os.fsencode(name), dir_fd=parent) == target
    except OSError:
        return False


@contextlib.contextmanager
def _missing_is_fine() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        return


def _gives_acl(folder: int) -> bool:
    """Whether what is made in an open folder gets an access list from it."""
    try:
        return _DEFAULT_ACL in os.listxattr(folder)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return False


def _write_whole(fd: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(fd, content, offset)
        content, offset = content[count:], offset + count


def _punch(fd: int, offset: int, length: int) -> None:
    """Make zeros, and free what they took, where the file system can."""
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return
    zeros = bytes(min(length, CHUNK_BYTES))
    for at in range(offset, offset + length, len(zeros)):
        _write_whole(fd, memoryview(zeros)[: min(len(zeros), offset + length - at)], at)
