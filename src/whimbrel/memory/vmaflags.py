"""What smaps would say of a process that stands still, out of what it said while the process ran. Pure.

CRIU takes two things from smaps: the mappings, which maps lists as well and at once, and their flags, which nothing
else shows. The kernel counts every page for it (10 to 40 ms a GB), so in the freeze that is left out:

- `ESSENTIAL` flags change what a program does. A process that has none, in which nobody made one since (`flagwatch`),
  has none now, however its mappings moved, grew, merged or were replaced. The flags of the kernel's own mappings and
  of the first stack are constant, and go with their names.
- Mappings that are kept out of core dumps, droppable ones among them (the C library's state of getrandom), are found
  where they were, of the same size.
- The rest is advice that changes speed only (no reserve, read ahead, huge pages, merging). A mapping has that of the
  one that was at its place; what was advised since is lost.

Whatever else is met means that smaps must be read after all.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from whimbrel.memory.vmas import KERNEL_NAMES

ESSENTIAL = frozenset(b"gd lo ht dc wf io pf ss".split())
_KEPT = frozenset((b"dd", b"dp"))
_STACK, _STACK_FLAG = b"[stack]", b"gd"
_MEMORY = b"0"  # the inode of a mapping without a file


@dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    end: int
    perms: bytes
    offset: int
    inode: bytes
    device: bytes
    name: bytes

    def continues(self, other: _Mapping) -> bool:
        """Overlaps it, and is, as it looks, a part of it, or what it has grown to. Permissions change freely."""
        if (self.inode, self.device, self.name) != (other.inode, other.device, other.name):
            return False
        if self.inode != _MEMORY and self.start - self.offset != other.start - other.offset:
            return False
        return self.start < other.end and other.start < self.end

    def is_where(self, other: _Mapping) -> bool:
        return self.continues(other) and (self.start, self.end) == (other.start, other.end)


@dataclass(frozen=True, slots=True)
class FlagsBefore:
    """The mappings of a process, in order of address, with the flags of each."""

    mappings: tuple[_Mapping, ...]
    flags: tuple[bytes, ...]


def flags_before(smaps: bytes) -> FlagsBefore | None:
    """From the text of smaps; None where flags are in use that one cannot foresee."""
    mappings: list[_Mapping] = []
    flags: list[bytes] = []
    for line in smaps.splitlines():
        if line.startswith(b"VmFlags:"):
            flags.append(line[8:].strip())
        elif b"-" in line.split(b" ", 1)[0]:
            mappings.append(_mapping(line))
    if not mappings or len(mappings) != len(flags):
        return None
    for mapping, has in zip(mappings, flags, strict=True):
        if mapping.name not in KERNEL_NAMES and _essential(has) - _expected(mapping):
            return None
    return FlagsBefore(tuple(mappings), tuple(flags))


def smaps_now(maps: bytes, before: FlagsBefore) -> bytes | None:
    """What CRIU reads of smaps, for a process in which no essential flag was made since `before`; `maps` is of the
    process standing still. None where it cannot be known."""
    ends = [mapping.end for mapping in before.mappings]
    kernels = {
        mapping.name: flags
        for mapping, flags in zip(before.mappings, before.flags, strict=True)
        if mapping.name in KERNEL_NAMES
    }
    kept = sum(_is_kept(mapping, flags) for mapping, flags in zip(before.mappings, before.flags, strict=True))
    parts: list[bytes] = []
    for line in maps.splitlines():
        mapping = _mapping(line)
        if mapping.name in KERNEL_NAMES:
            flags = kernels.get(mapping.name)
        else:
            flags = _flags_of(mapping, before, bisect.bisect_right(ends, mapping.start))
        if flags is None:
            return None
        kept -= _is_kept(mapping, flags)
        parts += (line, b"\nVmFlags: ", flags, b"\n")
    return b"".join(parts) if parts and not kept else None


def _flags_of(mapping: _Mapping, before: FlagsBefore, at: int) -> bytes | None:
    """`at`: the first mapping from before that ends behind its start."""
    for index in range(at, len(before.mappings)):
        if before.mappings[index].start >= mapping.end:
            break
        earlier, flags = before.mappings[index], before.flags[index]
        if mapping.is_where(earlier) or (mapping.continues(earlier) and not _is_kept(earlier, flags)):
            return flags
        if _is_kept(earlier, flags):
            return None
    if mapping.inode != _MEMORY:
        return None  # a file's own code may have given it flags
    return b" ".join(_expected(mapping))


def _essential(flags: bytes) -> frozenset[bytes]:
    has = frozenset(flags.split())
    return ESSENTIAL & has if b"dp" not in has else frozenset()  # see `_KEPT`: that one is wiped in children, too


def _is_kept(mapping: _Mapping, flags: bytes) -> bool:
    return mapping.name not in KERNEL_NAMES and bool(_KEPT & set(flags.split()))


def _expected(mapping: _Mapping) -> set[bytes]:
    return {_STACK_FLAG} if mapping.name == _STACK else set()


def _mapping(line: bytes) -> _Mapping:
    fields = line.split(None, 5)
    start, end = fields[0].split(b"-")
    return _Mapping(
        int(start, 16),
        int(end, 16),
        fields[1],
        int(fields[2], 16),
        fields[4],
        fields[3],
        fields[5].rstrip() if len(fields) > 5 else b"",
    )
