"""Carrying files between nodes as a tar stream: changed files of a writable layer, or a whole image.

`pack` keeps owners, modes, times, extended attributes, hard links and overlay whiteouts. `apply` takes the
stream as hostile: it walks from an open folder without following any link, never opens what exists, and
refuses every name that is not plainly below that folder.

A writable layer may arrive in a folder that shows what lies below it too (another engine's mounted container):
there a whiteout means "delete", and an opaque folder "delete what was in it".
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from whimbrel.model.errors import BadInput, WhimbrelError
from whimbrel.storage.listing import Changes

_XATTR = "SCHILY.xattr."
_REMOVED = "WHIMBREL.removed"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20
_OPAQUE = "trusted.overlay.opaque"
_XATTR_PREFIXES = ("user.", "security.capability", _OPAQUE, "system.posix_acl_")
# null, zero, full, random, urandom; tty, console, ptmx: every container has them, and they lead to nothing of the host
_HARMLESS_NODES = {*((1, minor) for minor in (3, 5, 7, 8, 9)), *((5, minor) for minor in (0, 1, 2))}


def pack(folder: Path, changes: Changes, stream: IO[bytes]) -> None:
    """Write `changes` of `folder` to `stream`, which need not be seekable.

    Files that vanished meanwhile and sockets are left out; a file that changes under the reader arrives torn,
    and is changed again at the next look.
    """
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 16) as archive:
        for path in changes.removed:
            gone = tarfile.TarInfo(path)
            gone.pax_headers = {_REMOVED: "1"}
            archive.addfile(gone)
        for path in changes.changed:
            with contextlib.suppress(FileNotFoundError):
                _pack_one(archive, folder, path)


def _pack_one(archive: tarfile.TarFile, folder: Path, path: str) -> None:
    full = folder / path
    member = archive.gettarinfo(str(full), arcname=path)
    if member is None:  # a socket
        return
    status = full.lstat()
    member.uname = member.gname = ""
    member.pax_headers = {"mtime": f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09d}"}
    for name in os.listxattr(full, follow_symlinks=False):
        if name.startswith(_XATTR_PREFIXES):
            value = os.getxattr(full, name, follow_symlinks=False)
            member.pax_headers[_XATTR + name] = value.decode("utf-8", "surrogateescape")
    if not member.isreg():
        archive.addfile(member)
        return
    with full.open("rb") as file:
        archive.addfile(member, cast(IO[bytes], _Exactly(file, member.size)))


class _Exactly:
    """A file as long as announced: cut, or filled with zeros, when it changes its size while it is read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        data = self._file.read(size)
        self._left -= size
        return data + bytes(size - len(data))


class Merged:
    """Of a folder that shows lower layers too: which opaque folders have been emptied. One for all calls."""

    def __init__(self) -> None:
        self.emptied: set[str] = set()


def apply(folder: Path, stream: IO[bytes], merged: Merged | None = None) -> None:
    """Bring what `pack` (or GNU tar of a whole image) wrote into `folder`. Raises BadInput for a hostile or
    broken stream; what was applied before stays, the caller throws the folder away."""
    root = os.open(folder, _FOLDER)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 16) as archive:
            folder_times: dict[str, int] = {}
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every member for ever
                _apply_one(archive, member, root, folder_times, merged)
            for path, mtime_ns in folder_times.items():
                with contextlib.suppress(FileNotFoundError), _parent(root, path) as (parent, name):
                    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadInput(f"the stream of files for {folder} is broken: {error}") from error
    except OSError as error:
        raise WhimbrelError(f"cannot write {error.filename} below {folder}: {error.strerror}") from error
    finally:
        os.close(root)


def _apply_one(
    archive: tarfile.TarFile, member: tarfile.TarInfo, root: int, times: dict[str, int], merged: Merged | None
) -> None:
    path = _plain(member.name)
    if not path:
        return  # the folder itself
    with _parent(root, path) as (parent, name):
        if _REMOVED in member.pax_headers or (merged is not None and _is_whiteout(member)):
            _delete(parent, name)
            return
        existing = _stat(parent, name)
        if merged is not None and _XATTR + _OPAQUE in member.pax_headers and path not in merged.emptied:
            merged.emptied.add(path)
            _delete(parent, name)
            existing = None
        if existing is not None and not (member.isdir() and stat.S_ISDIR(existing.st_mode)):
            _delete(parent, name)
            existing = None
        if member.isdir():
            if existing is None:
                os.mkdir(name, 0o700, dir_fd=parent)
        elif member.isreg():
            _write_file(archive, member, parent, name)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            _link(root, member, parent, name)
            return
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif _is_whiteout(member):
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
        elif _is_harmless(member):
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        else:
            raise BadInput(f"member {member.name!r} is a device node, which may not cross between nodes")
        _set_metadata(member, parent, name, merged=merged is not None)
    if member.isdir():
        times[path] = _mtime_ns(member)


def _is_whiteout(member: tarfile.TarInfo) -> bool:
    """Overlay's word for "this path is deleted"."""
    return member.ischr() and (member.devmajor, member.devminor) == (0, 0)


def _is_harmless(member: tarfile.TarInfo) -> bool:
    return member.ischr() and (member.devmajor, member.devminor) in _HARMLESS_NODES


def _write_file(archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    source = archive.extractfile(member)
    assert source is not None
    with open(target, "wb", buffering=0) as file:
        shutil.copyfileobj(source, file, _COPY_BYTES)


def _link(root: int, member: tarfile.TarInfo, parent: int, name: str) -> None:
    target = _plain(member.linkname)
    try:
        with _parent(root, target) as (target_parent, target_name):
            os.link(target_name, name, src_dir_fd=target_parent, dst_dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError as error:
        raise BadInput(f"member {member.name!r} links to {target!r}, which did not arrive") from error


def _set_metadata(member: tarfile.TarInfo, parent: int, name: str, *, merged: bool) -> None:
    os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    at = f"/proc/self/fd/{parent}/{name}"
    if not member.issym():
        os.chmod(at, member.mode & 0o7777)
    for key, value in member.pax_headers.items():
        attribute = key.removeprefix(_XATTR)
        if merged and attribute == _OPAQUE:
            continue  # overlayfs keeps its own
        if key.startswith(_XATTR) and attribute.startswith(_XATTR_PREFIXES):
            os.setxattr(at, attribute, value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
    mtime_ns = _mtime_ns(member)
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)


def _mtime_ns(member: tarfile.TarInfo) -> int:
    seconds, _, fraction = str(member.pax_headers.get("mtime", member.mtime)).partition(".")
    return int(seconds) * 10**9 + int((fraction + "000000000")[:9] or 0)


def _plain(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise BadInput(f"member {name!r} would be written outside its folder")
    return "/".join(parts)


@contextlib.contextmanager
def _parent(root: int, path: str) -> Iterator[tuple[int, str]]:
    """Open the folder that holds `path`, one real folder at a time. Raises BadInput at a link."""
    *folders, name = path.split("/")
    at = os.dup(root)
    try:
        for folder in folders:
            try:
                below = os.open(folder, _FOLDER, dir_fd=at)
            except NotADirectoryError as error:
                raise BadInput(f"member {path!r} would be written through {folder!r}, which is no folder") from error
            os.close(at)
            at = below
        yield at, name
    finally:
        os.close(at)


def _stat(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _delete(parent: int, name: str) -> None:
    status = _stat(parent, name)
    if status is None:
        return
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(name, dir_fd=parent)
    else:
        os.unlink(name, dir_fd=parent)
