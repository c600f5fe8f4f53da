"""What only a look at processes tells of files: mapped ones, whose times do not move, and open ones without a name."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from whimbrel.storage.listing import BLOCK_BYTES

_DELETED = " (deleted)"
_KERNELS = ("/proc/", "/sys/")
_SHARED_MAPPING = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ .w.s [0-9a-f]+ \S+ [1-9][0-9]* +(/.*)$", re.MULTILINE)


def mapped_files(pids: Iterable[int]) -> set[str]:
    """Files that the processes map shared and writable, as paths inside the container without leading ``/``.

    A store into such a mapping need not move any time stamp, so the last look must not trust the stamps.
    """
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for path in _SHARED_MAPPING.findall(Path(f"/proc/{pid}/maps").read_bytes()):
                if not path.endswith(b" (deleted)"):
                    found.add(os.fsdecode(path.replace(b"\\012", b"\n")).lstrip("/"))
    return found


def held_files(pids: Iterable[int]) -> set[str] | None:
    """Files that the processes have open for writing: to these they may write without anybody being told (io_submit).
    Paths as above. None when one of them has lost the name by which it was opened, but not its last."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    at = f"/proc/{pid}/fd/{number}"
                    if not os.lstat(at).st_mode & stat.S_IWUSR or not (path := os.readlink(at)).startswith("/"):
                        continue
                    status = os.stat(at)
                    if stat.S_ISREG(status.st_mode) and status.st_nlink and not path.startswith(_KERNELS):
                        found.add(path.lstrip("/"))
    return None if any(path.endswith(_DELETED) for path in found) else found


class Nameless(NamedTuple):
    """A file that is open and has no name any more: it crosses inside CRIU's images."""

    pid: int
    path: str
    allocated_bytes: int


def nameless_files(pids: Iterable[int]) -> list[Nameless]:
    """Each file once, whoever has it open. Processes that end meanwhile are left out."""
    found: dict[tuple[int, int], Nameless] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    at = f"/proc/{pid}/fd/{number}"
                    status = os.stat(at)
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
                        path = os.readlink(at).removesuffix(_DELETED)
                        found[status.st_dev, status.st_ino] = Nameless(pid, path, status.st_blocks * BLOCK_BYTES)
    return list(found.values())
