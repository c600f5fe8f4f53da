"""A process's mappings, and which of them cross by us.

The page channel carries what CRIU leaves as holes (see `whimbrel.checkpoint.images`): the pages that no
file holds of all private mappings, those of files included (their copied-on-write pages), but not the
kernel's own mappings and not huge-TLB. Everything else is in CRIU's images.
"""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass

from whimbrel.memory.ranges import Ranges, as_ranges

# Names that /proc/PID/maps gives to mappings without a file; the rest ([heap], [stack], [anon:x], "") is
# memory.
KERNEL_NAMES = frozenset((b"[vdso]", b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[vectors]", b"[sigpage]",
                           b"[uprobes]"))  # fmt: skip
_VDSO = b"[vdso]"
_NO_DEVICE = b"00:00"
_HUGE_TLB = b"/anon_hugepage"
_LARGE_BYTES = 1 << 20
_PRIVATE = ord("p")


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping, `[start, end)` in bytes. `locked`, `huge_tlb`, `droppable` and `registered` (held by some
    userfaultfd's write-protect) are known only when read with `flags=True`."""

    start: int
    end: int
    perms: str
    name: str
    anonymous: bool
    private: bool
    locked: bool = False
    huge_tlb: bool = False
    droppable: bool = False
    registered: bool = False


def trackable(vma: Vma) -> bool:
    """Does this mapping cross by us? Memory without any permission counts, its pages may have been written
    before; so do mappings of files, whose copied-on-write pages no file holds."""
    name = vma.name.encode()
    return vma.private and not (vma.huge_tlb or name.startswith(_HUGE_TLB) or name in KERNEL_NAMES)


def read_proc(directory_fd: int, name: str) -> bytes:
    """A whole file below an open /proc/PID. A process that is gone raises ProcessLookupError."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, f"{name}: the process is gone") from error
    try:
        parts = []
        while part := os.read(fd, 1 << 18):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _is_memory(fields: list[bytes]) -> bool:
    """Of one line of maps, split: no file behind it, and not the kernel's."""
    if fields[4] != b"0" or fields[3] != _NO_DEVICE:
        return False
    return len(fields) == 5 or (fields[5].startswith(b"[") and fields[5].rstrip(b"\n") not in KERNEL_NAMES)


def _parse(fields: list[bytes], flags: bytes = b"") -> Vma:
    start, end = fields[0].split(b"-")
    has = frozenset(flags.split())
    return Vma(
        start=int(start, 16),
        end=int(end, 16),
        perms=fields[1].decode(),
        name=fields[5].rstrip(b"\n").decode(errors="replace") if len(fields) > 5 else "",
        anonymous=_is_memory(fields),
        private=fields[1][3:4] == b"p",
        locked=b"lo" in has,
        huge_tlb=b"ht" in has,
        droppable=b"dp" in has,
        registered=b"uw" in has,
    )


def read_vmas(pid: int, *, flags: bool = False) -> list[Vma]:
    """All mappings of a process, in order of address. `flags` reads smaps instead, which walks every page
    (milliseconds). Raises ProcessLookupError when the process is gone."""
    directory = open_proc(pid)
    try:
        return parse_smaps(read_proc(directory, "smaps")) if flags else parse_maps(read_proc(directory, "maps"))
    finally:
        os.close(directory)


def read_vdso(pid: int) -> Ranges:
    """Where the kernel's code lies in a process: no row, or one for each mapping of that name. In the freeze, so it
    looks at these lines only. Raises ProcessLookupError when the process is gone."""
    directory = open_proc(pid)
    try:
        text = read_proc(directory, "maps")
    finally:
        os.close(directory)
    rows = []
    at = text.find(_VDSO)
    while at >= 0:
        fields = text[text.rfind(b"\n", 0, at) + 1 : at + len(_VDSO)].split(None, 5)
        if fields[5] == _VDSO:  # and no file whose name ends like it
            start, end = fields[0].split(b"-")
            rows.append((int(start, 16), int(end, 16)))
        at = text.find(_VDSO, at + len(_VDSO))
    return as_ranges(rows)


def open_proc(pid: int) -> int:
    """/proc/PID, open: it stays with this very process, whoever gets the number later."""
    try:
        return os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, f"process {pid} does not exist") from error


def parse_maps(text: bytes) -> list[Vma]:
    return [_parse(line.split(None, 5)) for line in text.splitlines()]


def parse_smaps(text: bytes) -> list[Vma]:
    found = []
    fields: list[bytes] = []
    for line in text.splitlines():
        if line.startswith(b"VmFlags:"):
            found.append(_parse(fields, line[8:]))
        elif b"-" in line.split(b" ", 1)[0]:
            fields = line.split(None, 5)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Private:
    """What crosses by us in one process: one row per mapping. Of `rows`, `of_files` have a file behind, and
    `large` have none and are 1 MiB or more."""

    rows: Ranges
    of_files: Ranges
    large: Ranges


def private_mappings(directory_fd: int) -> Private:
    """The trackable mappings of the process behind an open /proc/PID (see `trackable`)."""
    return private_of(read_proc(directory_fd, "maps"))


def private_of(maps: bytes) -> Private:
    """The same, from the text of maps.

    The hot path of every scan: maps alone, without objects. A droppable mapping is included: it cannot be
    told apart here, and sending it too does no harm.
    """
    rows, of_files, large = [], [], []
    for line in maps.splitlines():
        fields = line.split(None, 5)
        if not _is_ours(fields):
            continue
        start, end = fields[0].split(b"-")
        row = (int(start, 16), int(end, 16))
        rows.append(row)
        if fields[4] != b"0":
            of_files.append(row)
        elif row[1] - row[0] >= _LARGE_BYTES:
            large.append(row)
    return Private(as_ranges(rows), as_ranges(of_files), as_ranges(large))


def _is_ours(fields: list[bytes]) -> bool:
    """Of one line of maps, split: is it a trackable mapping?"""
    if fields[1][3] != _PRIVATE:
        return False
    name = fields[5].rstrip() if len(fields) > 5 else b""
    return name not in KERNEL_NAMES and not name.startswith(_HUGE_TLB)


class Stretches:
    """Stretches of address space that hold nothing but trackable mappings, each to be registered in one step.

    Registering mapping by mapping, out of a list that is old by then, would cut one that has grown or moved meanwhile
    in two, and the program could not mremap it any more (EFAULT). What bounds a stretch (shared mappings, the
    kernel's own) hardly ever changes; within one the kernel takes its own, exact list.
    """

    def __init__(self, directory_fd: int) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        low, high = 0, 0
        for line in read_proc(directory_fd, "maps").splitlines():
            fields = line.split(None, 5)
            start, end = (int(address, 16) for address in fields[0].split(b"-"))
            low, high = low or start, end
            if not _is_ours(fields):
                self._starts.append(start)
                self._ends.append(end)
        self._low, self._high = low, high

    def around(self, start: int, end: int) -> tuple[int, int]:
        """The whole stretch in which [start, end) lies."""
        before = bisect.bisect_right(self._ends, start)
        after = bisect.bisect_left(self._starts, end)
        low = self._ends[before - 1] if before else min(self._low, start)
        high = self._starts[after] if after < len(self._starts) else max(self._high, end)
        return low, high
