"""Which pages are in place before the restored program runs, and which may come after.

The dump left holes (see `checkpoint.images`). Here each hole becomes either *present* (copied into CRIU's own
pages file) or *lazy* (placed through a userfaultfd while the program runs). Present are all pages of mappings
that cannot be lazy. Others would take more of the freeze in the file than they cost after it.

This runs inside the freeze, so it works on ranges, of which there are some hundred, and never on single pages, of
which there are hundreds of thousands.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.checkpoint import images as img
from whimbrel.memory.ranges import EMPTY, Ranges, as_ranges, intersect, ranges_of, subtract, total_bytes, union
from whimbrel.memory.store import PageStore, ProcessIndex
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES


@dataclass(frozen=True, eq=False)
class LazyPages:
    """What of one process comes after the resume: byte ranges, in the store or (see `settle`) behind."""

    ns_pid: int
    ranges: Ranges


@dataclass(frozen=True)
class _Piece:
    """A stretch of a page map; `theirs_at` is where CRIU wrote its contents (page number in the file), if it did."""

    start: int
    end: int
    flags: int
    theirs_at: int = -1


def settle(images: Path, store: PageStore, *, lazy: bool, behind: Mapping[int, Ranges]) -> tuple[list[LazyPages], int]:
    """Rewrite every page map in `images`. Returns what is left for later, per process, and the pages put in place.

    `behind` are pages that come after the resume: what the store may hold of them is out of date.

    Raises StepFailed when a page exists that never arrived: better to roll back than to restore a hole.
    """
    later: list[LazyPages] = []
    in_place = 0
    store.merge()
    for ns_pid in img.pagemap_pids(images):
        old = img.read_pagemap(images, ns_pid)
        index = store.index.get(ns_pid, ProcessIndex())
        holes = img.holes_of(old)
        ours_behind = union(behind.get(ns_pid, EMPTY))
        _check_all_arrived(ns_pid, subtract(union(old.ranges[holes]), ours_behind), index)
        anonymous = img.lazy_ranges(images, ns_pid)
        # A page of zeros of anonymous memory need not exist: whoever touches it gets zeros from the kernel.
        zeros = subtract(intersect(ranges_of(index.zeros()), anonymous), ours_behind)
        ours = subtract(union(old.ranges[holes]), zeros)
        waiting = intersect(ours, anonymous) if lazy else EMPTY
        now = subtract(ours, waiting)
        in_place += total_bytes(now) // PAGE_BYTES
        pieces = _pieces(old, holes, now, waiting)
        _write_pages(images / f"pages-{old.pages_id}.img", pieces, index, store)
        ranges = as_ranges((piece.start, piece.end) for piece in pieces)
        flags = np.array([piece.flags for piece in pieces], np.uint32)
        img.write_pagemap(images, img.Pagemap(ns_pid, old.pages_id, ranges, flags))
        later.append(LazyPages(ns_pid, waiting))
    return later, in_place


def rehearse(folder: Path) -> None:
    """Settle two pages in a new folder, long before the freeze. In a process that was forked, the first run of all
    this code takes the kernel's copies of the pages that it writes to, counts of references mostly: 2 ms."""
    folder.mkdir()
    pages = np.array([16, 17], np.uint64)
    rows = as_ranges([(16 * PAGE_BYTES, 18 * PAGE_BYTES), (32 * PAGE_BYTES, 33 * PAGE_BYTES)])
    flags = np.array([img.PE_PARENT, img.PE_PRESENT], np.uint32)
    img.write_pagemap(folder, img.Pagemap(1, 1, rows, flags))
    img.write_mappings(folder, 1, rows)
    (folder / "pages-1.img").write_bytes(bytes(PAGE_BYTES))
    store = PageStore(0)
    try:
        for arrived, slot in ((pages, 0), (pages[:1], 1)):
            store.commit(1, arrived, np.full(len(arrived), slot, np.int64))
        for lazy in (True, False):
            settle(folder, store, lazy=lazy, behind={})
    finally:
        store.close()
        shutil.rmtree(folder)


def _check_all_arrived(ns_pid: int, ours: Ranges, index: ProcessIndex) -> None:
    low, high = index.span(ours)
    wanted, got = total_bytes(ours) // PAGE_BYTES, int((high - low).sum())
    if got < wanted:
        raise StepFailed(f"{wanted - got} pages of process {ns_pid} never arrived at the destination")


def _pieces(old: img.Pagemap, holes: npt.NDArray[np.bool_], now: Ranges, waiting: Ranges) -> list[_Piece]:
    pieces = [_Piece(start, end, img.PE_PRESENT) for start, end in now.tolist()]
    pieces += [_Piece(start, end, img.PE_LAZY) for start, end in waiting.tolist()]
    at = 0
    for (start, end), flags, hole in zip(old.ranges.tolist(), old.flags.tolist(), holes.tolist(), strict=True):
        if not hole:
            pieces.append(_Piece(start, end, flags & ~img.PE_LAZY, at))
            at += (end - start) // PAGE_BYTES
    return sorted(pieces, key=lambda piece: piece.start)


def _write_pages(path: Path, pieces: list[_Piece], index: ProcessIndex, store: PageStore) -> None:
    """The pages file, in the order of the page map: ours out of the store, the others as CRIU wrote them."""
    written = path.read_bytes()
    with memoryview(store.map) as contents, path.open("wb", buffering=1 << 20) as out:
        for theirs, group in itertools.groupby(pieces, key=lambda piece: piece.theirs_at >= 0):
            if not theirs:
                present = as_ranges((piece.start, piece.end) for piece in group if piece.flags == img.PE_PRESENT)
                for slot, count in index.stretches(present):
                    out.write(contents[slot * PAGE_BYTES : (slot + count) * PAGE_BYTES])
                continue
            for piece in group:
                start = piece.theirs_at * PAGE_BYTES
                part = written[start : start + piece.end - piece.start]
                if len(part) != piece.end - piece.start:
                    raise StepFailed(f"{path.name} is shorter than its page map says")
                out.write(part)
