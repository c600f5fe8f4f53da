"""Copy and delete trees over a slow file system: several files at a time, because each waits for its own answers."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 8
_COPY_BYTES = 1 << 20


def copy_tree(source: Path, target: Path, *, leave_out: Collection[str] = ()) -> None:
    """Everything of `source` with owners, modes, times, links and ``user.`` attributes, into a new folder `target`.

    `leave_out` are top-level names. Device nodes are left out: a container's /dev is the node's own. Raises OSError.
    """
    os.umask(0)
    names: dict[tuple[int, int], Path] = {}
    folders: list[tuple[Path, Path]] = [(source, target)]
    target.mkdir(mode=0o700)
    again: list[tuple[Path, Path]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        pending = []
        for path, status in _walk(source, leave_out):
            copy = target / path.relative_to(source)
            if stat.S_ISDIR(status.st_mode):
                copy.mkdir(mode=0o700)
                folders.append((path, copy))
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                continue
            elif status.st_nlink > 1 and (first := names.setdefault((status.st_dev, status.st_ino), copy)) != copy:
                again.append((first, copy))
            else:
                pending.append(pool.submit(_copy_one, path, copy, status))
        for work in pending:
            work.result()
        for work in [pool.submit(os.link, first, copy) for first, copy in again]:
            work.result()
        for work in [pool.submit(_finish, copy, os.lstat(path)) for path, copy in reversed(folders)]:
            work.result()


def _walk(folder: Path, leave_out: Collection[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """Parents before children; links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name in leave_out:
            continue
        path = Path(entry.path)
        yield path, entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, ())


def _copy_one(source: Path, target: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
        if (status.st_uid, status.st_gid) != (0, 0):
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        return
    if stat.S_ISFIFO(status.st_mode):
        os.mkfifo(target)
        _finish(target, status)
        return
    with open(source, "rb") as reader, open(target, "xb", opener=_private, buffering=0) as writer:
        while os.sendfile(writer.fileno(), reader.fileno(), None, _COPY_BYTES):
            pass
        for name in os.listxattr(reader.fileno()):
            if name.startswith("user."):
                with contextlib.suppress(OSError):  # many shared file systems have none
                    os.setxattr(writer.fileno(), name, os.getxattr(reader.fileno(), name))
    _finish(target, status)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _finish(target: Path, status: os.stat_result) -> None:
    """Owner first: changing it takes set-user-id away."""
    if (status.st_uid, status.st_gid) != (0, 0):
        os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


def remove_tree(folder: Path) -> None:
    """Delete a folder of many files; what has vanished or vanishes meanwhile is no error. Raises OSError."""
    files: list[str] = []
    folders = [os.fspath(folder)]
    for parent in folders:  # grows while we walk
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(parent):
                (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.path)
    with ThreadPoolExecutor(THREADS) as pool:
        for work in [pool.submit(_unlink, path) for path in files]:
            work.result()
    for path in reversed(folders):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
