"""Which files below a folder were written to: inotify, so that nobody has to look at all of them again.

Events come from the file system that the container writes through. Below an overlay that is the overlay itself, not the
layer underneath, whose files are written to without any event. What inotify does not tell: stores into mapped files,
and asynchronous writes (io_submit) while the file is open. See `openfiles.held_files`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import threading
from pathlib import Path
from typing import NamedTuple

from whimbrel.storage.confined import FOLDER, open_below_root, open_folder

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE = 0x2, 0x4, 0x8, 0x80, 0x100
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR = 0x4000, 0x8000, 0x0100_0000
_WRITTEN = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE
_WANTED = _WRITTEN | IN_MOVED_TO | IN_CREATE | IN_ONLYDIR
_EVENT = struct.Struct("=iIII")  # watch descriptor, mask, cookie, length of the name
_READ_BYTES = 1 << 18
_MOST_NAMES = 100_000
_LIMIT = Path("/proc/sys/fs/inotify/max_user_watches")
_OVERLAYS = ("overlay", "fuse.fuse-overlayfs")
_libc = ctypes.CDLL(None, use_errno=True)


class Touched(NamedTuple):
    """`written`: paths whose contents or metadata changed, as their folders were called when they were added last;
    `made`: names that appeared."""

    written: set[str]
    made: set[str]


class Watch:
    """The folder `carried`, as process `pid` sees it at `inside` (relative to its root), and folders below it that are
    added one by one. Events are taken as they come, by a thread: the kernel keeps only some thousands. Raises OSError
    when there can be none, or when what the process sees there is something else."""

    def __init__(self, carried: Path, pid: int, inside: str = "") -> None:
        with contextlib.ExitStack() as undo:
            self._carried = _opened(undo, os.open(carried, FOLDER))
            self._root = _opened(undo, _as_seen(self._carried, pid, inside))
            self._fd = _opened(undo, int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)))
            end_out, end_in = os.pipe()
            self._end_out, self._end_in = _opened(undo, end_out), _opened(undo, end_in)
            self._left = int(_LIMIT.read_text()) // 2  # the service may want some itself
            self._gate = threading.Lock()
            self._folders: dict[int, str] = {}
            self._touched = Touched(set(), set())
            self._lost = False
            self._thread = threading.Thread(target=self._keep_taking, name="watch", daemon=True)
            self._thread.start()
            undo.pop_all()

    def close(self) -> None:
        os.close(self._end_in)
        self._thread.join()
        for fd in (self._end_out, self._fd, self._root, self._carried):
            os.close(fd)

    def add(self, folder: str) -> bool:
        """From now on, also under a new name. False when it cannot be watched: no such folder, something else mounted
        over it, or too many."""
        try:
            fd = self._open(folder)
        except OSError:
            return False
        try:
            with self._gate:
                if len(self._folders) >= self._left:
                    return False
                wd = _libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _WANTED)
                if wd < 0:
                    return False
                self._folders[wd] = folder
                return True
        finally:
            os.close(fd)

    def touched(self) -> Touched | None:
        """Since it was asked last; None when events were lost, and nobody knows."""
        with self._gate:
            self._take()
            touched, self._touched = self._touched, Touched(set(), set())
            lost, self._lost = self._lost, False
        return None if lost else touched

    def _open(self, folder: str) -> int:
        try:
            return open_folder(self._root, folder, over_mounts=False)
        except OSError:
            fd = open_folder(self._root, folder)
        with contextlib.suppress(OSError):
            ours = open_folder(self._carried, folder)
            try:
                if os.path.sameopenfile(fd, ours):
                    return fd
            finally:
                os.close(ours)
        os.close(fd)
        raise OSError(f"{folder} is another folder for the container")

    def _keep_taking(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._end_out, select.POLLIN)
        while all(fd != self._end_out for fd, _ in poll.poll()):
            with self._gate:
                self._take()

    def _take(self) -> None:
        try:
            while True:
                self._note(os.read(self._fd, _READ_BYTES))
        except BlockingIOError:
            pass
        except BaseException:
            self._lost = True
            raise

    def _note(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            wd, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & IN_Q_OVERFLOW:
                self._lost = True
            elif mask & IN_IGNORED:
                self._folders.pop(wd, None)
            elif length and (folder := self._folders.get(wd)) is not None:
                name = os.fsdecode(data[at - length : at].rstrip(b"\0"))
                path = f"{folder}/{name}" if folder else name
                (self._touched.written if mask & _WRITTEN else self._touched.made).add(path)
        if len(self._touched.made) > _MOST_NAMES:
            self._touched.made.clear()
            self._lost = True


def _opened(undo: contextlib.ExitStack, fd: int) -> int:
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    undo.callback(os.close, fd)
    return fd


def _as_seen(carried: int, pid: int, inside: str) -> int:
    """The folder that process `pid` sees at `inside`: the carried one itself, or at the root an overlay of it."""
    if os.readlink(f"/proc/{pid}/root") != "/":
        raise OSError(f"process {pid} has changed its root")
    top = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        seen = open_below_root(top, inside)
    finally:
        os.close(top)
    if os.path.sameopenfile(seen, carried) or (not inside and _is_overlay(pid)):
        return seen
    os.close(seen)
    raise OSError(f"/{inside} is another folder for process {pid}")


def _is_overlay(pid: int) -> bool:
    """Of the mount that is on top of its root."""
    kinds = []
    with open(f"/proc/{pid}/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split()[4] == "/":
                kinds.append((left.split()[3], right.split()[0]))
    return bool(kinds) and kinds[-1][0] == "/" and kinds[-1][1] in _OVERLAYS
