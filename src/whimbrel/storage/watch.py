"""Which files below a folder were written to: inotify, so that nobody has to look at all of them again.

Events come from the file system that the container writes through. Below an overlay that is the overlay itself, not the
layer underneath, whose files are written to without any event. What inotify does not tell: stores into mapped files.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from whimbrel.storage.confined import open_folder

IN_MODIFY, IN_ATTRIB, IN_MOVED_TO, IN_CREATE = 0x2, 0x4, 0x80, 0x100
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR, IN_ISDIR = 0x4000, 0x8000, 0x0100_0000, 0x4000_0000
_WANTED = IN_MODIFY | IN_ATTRIB | IN_MOVED_TO | IN_CREATE | IN_ONLYDIR
_EVENT = struct.Struct("=iIII")  # watch descriptor, mask, cookie, length of the name
_READ_BYTES = 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


class Touched(NamedTuple):
    """`written`: paths whose contents or metadata changed, as their folders were called when they were added last;
    `made`: names that appeared."""

    written: set[str]
    made: set[str]


class Watch:
    """The folder at `root` as its writer sees it, and folders below it that are added one by one. Events are taken as
    they come, by a thread: the kernel keeps only some thousands. Raises OSError when there can be none."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            os.close(self._root)
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._gate = threading.Lock()
        self._folders: dict[int, str] = {}
        self._touched = Touched(set(), set())
        self._lost = False
        self._end_out, self._end_in = os.pipe()
        self._thread = threading.Thread(target=self._keep_taking, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.close(self._end_in)
        self._thread.join()
        for fd in (self._end_out, self._fd, self._root):
            os.close(fd)

    def add(self, folder: str) -> bool:
        """From now on, also under a new name. False when it cannot be watched: no such folder, or too many."""
        try:
            fd = open_folder(self._root, folder)
        except OSError:
            return False
        try:
            with self._gate:
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

    def _keep_taking(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._end_out, select.POLLIN)
        while all(fd != self._end_out for fd, _ in poll.poll()):
            with self._gate:
                self._take()

    def _take(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data, at = os.read(self._fd, _READ_BYTES), 0
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
                        (self._touched.written if mask & (IN_MODIFY | IN_ATTRIB) else self._touched.made).add(path)
