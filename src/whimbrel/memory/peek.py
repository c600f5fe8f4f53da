"""Copies pages out of another process: with `process_vm_readv`, or where it may share pages with others, through
/proc/PID/mem.

`process_vm_readv` pins what it reads, and for a pinned page that a process still shares with its parent or child the
kernel makes a copy first (Linux 5.19: `gup_must_unshare`). Eight workers that were forked after 1 GB was filled would
so need 8 GB more. A read of /proc/PID/mem pins nothing. It takes a call for each range and a fifth longer.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

import numpy as np
from numpy.typing import NDArray

from whimbrel.memory.ranges import Ranges, as_ranges, gaps, intersect, split, total_bytes, union
from whimbrel.memory.vmas import read_vmas
from whimbrel.model.units import PAGE_BYTES

IOV_MAX = 1024
_PIECE_BYTES = 16 << 20
_CALL_BYTES = 1 << 30  # the kernel moves less than 2 GiB in one call
LONG_BYTES = 1 << 14

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip

Buffer = bytearray | memoryview | NDArray[np.uint8]


def read_pages_into(pid: int, ranges: Ranges, buffer: Buffer, *, keep_shared: bool = False) -> Ranges:
    """Copy the bytes of `ranges` (uint64 (n, 2), page-aligned), one after another, to the start of `buffer`.

    A page that is gone does not stop the rest: its place in the buffer is zeroed, and it is in the ranges
    returned (none when all is well). When the process is gone, all are. Raises ValueError when `buffer` is
    too small or read-only. `keep_shared`: ranges of at least `LONG_BYTES` stay shared with other processes;
    shorter ones are as a rule pages that were written, and are the process's own.
    """
    target = np.frombuffer(buffer, dtype=np.uint8)
    size = total_bytes(ranges)
    if len(target) < size or not target.flags.writeable:
        raise ValueError(f"needs a writable buffer of {size} bytes, got {len(target)}")
    pieces = split(ranges, _PIECE_BYTES)
    return _read_both_ways(pid, pieces, target) if keep_shared else _read(pid, pieces, target)


def _read_both_ways(pid: int, pieces: Ranges, target: NDArray[np.uint8]) -> Ranges:
    """Long pieces through /proc/PID/mem, what lies between them in one go."""
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _read_slowly(pid, pieces, target)
    sizes = (pieces[:, 1] - pieces[:, 0]).astype(np.int64)
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    missing: list[Ranges] = []
    done = 0
    try:
        for long in [*np.flatnonzero(sizes >= LONG_BYTES).tolist(), len(pieces)]:
            if long > done:
                missing.append(_read(pid, pieces[done:long], target[offsets[done] : offsets[long]]))
            if long < len(pieces):
                missing.append(_read_long(pid, memory, pieces[long : long + 1], target[offsets[long] :]))
            done = long + 1
    finally:
        os.close(memory)
    return union(*missing)


def _read_long(pid: int, memory: int, row: Ranges, target: NDArray[np.uint8]) -> Ranges:
    """One range; from a page on that cannot be read, the slow way."""
    start, end = row[0].tolist()
    got = 0
    with contextlib.suppress(OSError):
        while start + got < end and (count := os.preadv(memory, [target[got : end - start].data], start + got)):
            got += count
    got -= got % PAGE_BYTES
    if start + got == end:
        return row[:0]
    return _read_slowly(pid, as_ranges([(start + got, end)]), target[got : end - start])


def _read(pid: int, pieces: Ranges, target: NDArray[np.uint8]) -> Ranges:
    vectors = np.stack((pieces[:, 0], pieces[:, 1] - pieces[:, 0]), axis=1)
    offsets = np.concatenate(([0], np.cumsum(vectors[:, 1].astype(np.int64))))
    missing: list[Ranges] = []
    first = 0
    while first < len(pieces):
        last = min(first + IOV_MAX, int(np.searchsorted(offsets, offsets[first] + _CALL_BYTES, side="right")) - 1)
        last = max(last, first + 1)
        wanted = int(offsets[last] - offsets[first])
        got = _call(pid, vectors[first:last], target[offsets[first] : offsets[last]])
        if got < wanted:
            # From the page that failed on, this batch goes the slow way; whole pages only count as read.
            done = got - got % PAGE_BYTES
            rest = _after(pieces[first:last], done)
            missing.append(_read_slowly(pid, rest, target[offsets[first] + done : offsets[last]]))
        first = last
    return union(*missing)


def _call(pid: int, remote: NDArray[np.uint64], target: NDArray[np.uint8]) -> int:
    """Bytes copied, in order, up to the first page that cannot be read."""
    remote = np.ascontiguousarray(remote)
    local = np.array((target.ctypes.data, len(target)), dtype=np.uint64)
    got: int = _readv(pid, local.ctypes.data, 1, remote.ctypes.data, len(remote), 0)
    return max(got, 0)


def _after(pieces: Ranges, skip_bytes: int) -> Ranges:
    ends = np.cumsum((pieces[:, 1] - pieces[:, 0]).astype(np.int64))
    first = int(np.searchsorted(ends, skip_bytes, side="right"))
    rest = pieces[first:].copy()
    if len(rest):
        rest[0, 0] = pieces[first, 1] - np.uint64(int(ends[first]) - skip_bytes)
    return rest


def _read_slowly(pid: int, pieces: Ranges, target: NDArray[np.uint8]) -> Ranges:
    """Mapping by mapping, so that a hole of any size costs one step; memory that is not readable by its own
    process (PROT_NONE) is read through /proc/PID/mem. Returns what is missing."""
    target[:] = 0
    try:
        mapped = as_ranges((vma.start, vma.end) for vma in read_vmas(pid))
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ProcessLookupError):
        return union(pieces)
    missing: list[tuple[int, int]] = []
    try:
        offset = 0
        for start, end in pieces.tolist():
            row = as_ranges([(start, end)])
            here = intersect(row, mapped)
            missing += gaps(start, end, here)
            for low, high in here.tolist():
                at = offset + low - start
                missing += _read_mapped(pid, memory, low, high, target[at : at + high - low])
            offset += end - start
    finally:
        os.close(memory)
    return union(as_ranges(missing))


def _read_mapped(pid: int, memory: int, start: int, end: int, target: NDArray[np.uint8]) -> list[tuple[int, int]]:
    missing: list[tuple[int, int]] = []
    base = start
    while start < end:
        row = np.array([(start, end - start)], dtype=np.uint64)
        start += _call(pid, row, target[start - base :]) // PAGE_BYTES * PAGE_BYTES
        if start >= end:
            break
        try:
            got = os.preadv(memory, [target[start - base :].data], start) // PAGE_BYTES * PAGE_BYTES
        except OSError:
            got = 0
        if got <= 0:
            missing.append((start, start + PAGE_BYTES))
            target[start - base : start - base + PAGE_BYTES] = 0
            got = PAGE_BYTES
        start += got
    return missing
