"""Reaching files below one folder and never outside it, whatever links somebody puts in the way meanwhile.

The folder belongs to a container that runs while it is read, or is filled from a peer that is not trusted. So no
path is walked by name: the kernel resolves it below the open folder and refuses every link (openat2, Linux 5.6).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat

from whimbrel.model.errors import BadInput

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPENAT2 = 437  # the same on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT = 0x01, 0x02, 0x04, 0x08, 0x10
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _openat2(root: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve | _NO_MAGICLINKS)
    fd = int(_libc.syscall(_OPENAT2, root, os.fsencode(path or "."), ctypes.byref(how), ctypes.sizeof(how)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def open_folder(root: int, path: str, *, over_mounts: bool = True) -> int:
    """A folder below the open folder `root` ("" is `root` itself). Raises OSError, also at any link on the way, and
    unless it may lead `over_mounts` at each mount point."""
    return _openat2(root, path, FOLDER, _BENEATH | _NO_SYMLINKS | (0 if over_mounts else _NO_XDEV))


def open_below_root(root: int, path: str) -> int:
    """A folder as who has `root` as its root sees it, links and all. Raises OSError."""
    return _openat2(root, path, FOLDER & ~os.O_NOFOLLOW, _IN_ROOT)


def plain(path: str) -> str:
    """`path` if it is plainly one of a file below a folder. Raises BadInput."""
    if not path or path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise BadInput(f"{path!r} would be written outside its folder")
    return path


def status_of(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def delete(parent: int, name: str) -> None:
    """Remove a file, or a folder with all that is in it; what is not there is no error."""
    status = status_of(parent, name)
    if status is None:
        return
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(name, dir_fd=parent)
    else:
        os.unlink(name, dir_fd=parent)


def refuses_path(error: OSError) -> bool:
    """Whether a path was refused because it leads through a link or a file, or out."""
    return error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV)
