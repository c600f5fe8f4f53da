"""What one node has written must be what the other one reads.

A network file system promises that for files that were closed ("close to open"); a frozen service closes nothing, and
caches of names and attributes may lag behind. So the writer pushes out what is still on its way and tells what it sees
then; the reader looks until it sees the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from whimbrel.model.errors import StepFailed
from whimbrel.storage.mounts import Mount, mounts
from whimbrel.storage.shared.paths import open_below

# path below a root, size in bytes, time of the last change in ns: as the writer's node sees them
Seen = tuple[str, int, int]

THREADS = 8
LOOK_AGAIN_S = 0.005
_PIDFD_GETFD = 438
_WRITE_OUT = 1 | 2 | 4  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER
_DELETED = " (deleted)"
_libc = ctypes.CDLL(None, use_errno=True)


def settle(root: str, pids: list[int]) -> list[Seen]:
    """Push out what the (frozen) processes `pids` wrote to their root file system, and tell what is there then.

    To the server, not to its disk: the reader needs no more, and a disk may take long. Files without a name are left
    out: CRIU carries their contents.
    """
    files: set[str] = set()
    with ThreadPoolExecutor(THREADS) as pool:
        work = [pool.submit(_push_out, *each) for each in _open_files(pids, files)]
        work += [pool.submit(_push_out_mapped, path) for path in _mapped_files(pids)]
        for each in work:
            each.result()
        return [seen for seen in pool.map(lambda path: _look(root, path), sorted(files)) if seen is not None]


def _open_files(pids: list[int], found: set[str]) -> Iterator[tuple[int, int]]:
    """(pid, descriptor) of everything that is open for writing on the root file system; adds their names to `found`."""
    root_mount = next(
        (mount.number for pid in pids for mount in reversed(_mounts_of(pid)) if mount.point == Path("/")), None
    )
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for number in os.listdir(f"/proc/{pid}/fdinfo"):
                fields = dict(
                    line.split(":\t", 1) for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
                    if ":\t" in line
                )  # fmt: skip
                writable = int(fields["flags"], 8) & os.O_ACCMODE != os.O_RDONLY
                if int(fields["mnt_id"]) == root_mount and writable:
                    path = os.readlink(f"/proc/{pid}/fd/{number}")
                    if not path.endswith(_DELETED):
                        found.add(path)
                    yield pid, int(number)


def _mounts_of(pid: int) -> list[Mount]:
    try:
        return mounts(pid)
    except (FileNotFoundError, ProcessLookupError):
        return []


def _push_out(pid: int, number: int) -> None:
    """A copy of the descriptor, closed again: the close makes the file system hand over what it still holds."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            fd = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
        finally:
            os.close(pidfd)
        if fd >= 0:
            _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _WRITE_OUT)
            os.close(fd)


def _mapped_files(pids: list[int]) -> Iterator[str]:
    """Mappings that are shared and writable, as files of /proc that lead to what is mapped."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
                fields = line.split(None, 5)
                if len(fields) == 6 and fields[1].startswith((b"rws", b"-ws")) and fields[5].startswith(b"/"):
                    yield f"/proc/{pid}/map_files/{_range(fields[0])}"


def _range(text: bytes) -> str:
    """``00400000-00452000`` -> as the kernel names it in map_files, without leading zeros."""
    return "-".join(f"{int(part, 16):x}" for part in text.split(b"-"))


def _push_out_mapped(path: str) -> None:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        _libc.sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _WRITE_OUT)


def _look(root: str, path: str) -> Seen | None:
    """Asks the file system anew: opening a file is what makes a client check its caches."""
    try:
        with open_below(root, path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            status = os.fstat(fd)
    except OSError:
        return None
    return (path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def await_visible(root: str, expected: list[Seen], wait_s: float) -> float:
    """Look below `root` until all of `expected` is seen as the writer saw it. Returns how long that took, in ms.

    Raises StepFailed after `wait_s`, naming a file."""
    started_s = time.monotonic()
    left = [tuple(seen) for seen in expected]
    with ThreadPoolExecutor(THREADS) as pool:
        while True:
            now = list(pool.map(lambda seen: _look(root, str(seen[0])), left))
            pairs = [(seen, found) for seen, found in zip(left, now, strict=True) if seen != found]
            if not pairs:
                return (time.monotonic() - started_s) * 1e3
            if time.monotonic() - started_s > wait_s:
                (path, size, _), found = pairs[0]
                there = f"{found[1]} bytes" if found else "no such file"
                raise StepFailed(
                    f"the other node does not see what was written last on the shared file system: {path} has {size} "
                    f"bytes, there {there}; mount it with shorter caches (docs/shared-storage.md)"
                )
            left = [seen for seen, _ in pairs]
            time.sleep(LOOK_AGAIN_S)
