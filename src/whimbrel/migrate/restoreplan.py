"""Which pages are in place before the restored program runs, and which may come after. Pure over the images.

The dump left holes (see `checkpoint.images`). Here each hole becomes either *present* (copied into CRIU's own
pages file) or *lazy* (placed through a userfaultfd while the program runs). Present are: all pages of mappings
that cannot be lazy, and of the lazy ones those written most recently, which the program will touch first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whimbrel.checkpoint import images as img
from whimbrel.memory.store import Pages, PageStore, pages_of
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES


@dataclass(frozen=True)
class LazyPages:
    """The pages of one process that come after the resume: page numbers and their slots in the store."""

    ns_pid: int
    pages: Pages
    slots: npt.NDArray[np.int64]


def _inside(pages: Pages, ranges: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """For each page number: does it lie in one of the ascending byte ranges?"""
    if len(ranges) == 0 or len(pages) == 0:
        return np.zeros(len(pages), bool)
    addresses = pages * np.uint64(PAGE_BYTES)
    at = np.searchsorted(ranges[:, 0], addresses, side="right")
    return (at > 0) & (addresses < ranges[np.maximum(at, 1) - 1, 1])


def _runs(pages: Pages, flags: npt.NDArray[np.uint32]) -> tuple[img.Ranges, npt.NDArray[np.uint32]]:
    """Join neighbouring pages with equal flags into byte ranges."""
    if len(pages) == 0:
        return np.empty((0, 2), np.uint64), np.empty(0, np.uint32)
    cut = np.flatnonzero((np.diff(pages) != 1) | (np.diff(flags.astype(np.int64)) != 0)) + 1
    starts = np.concatenate(([0], cut))
    ends = np.concatenate((cut, [len(pages)])) - 1
    ranges = np.stack(
        (pages[starts] * np.uint64(PAGE_BYTES), (pages[ends] + np.uint64(1)) * np.uint64(PAGE_BYTES)), axis=1
    )
    return ranges, flags[starts]


def settle(images: Path, store: PageStore, *, lazy: bool, recent_pages: int) -> tuple[list[LazyPages], int]:
    """Rewrite every page map in `images`. Returns what is left for later, per process, and the pages put in place.

    Raises StepFailed when a page exists that never arrived: better to roll back than to restore a hole.
    """
    later: list[LazyPages] = []
    in_place = 0
    for ns_pid in img.pagemap_pids(images):
        old = img.read_pagemap(images, ns_pid)
        pages = pages_of(old.ranges)
        flags = np.repeat(old.flags, ((old.ranges[:, 1] - old.ranges[:, 0]) // PAGE_BYTES).astype(np.int64))
        ours = (flags & (img.PE_PARENT | img.PE_LAZY)) != 0  # CRIU wrote no contents of these
        index = store.index.get(ns_pid)
        slots = np.full(len(pages), -1, np.int64)
        if index is not None:
            slots[ours] = index.find(pages[ours])
        if bool((slots[ours] < 0).any()):
            missing = int((slots[ours] < 0).sum())
            raise StepFailed(f"{missing} pages of process {ns_pid} never arrived at the destination")
        may_wait = ours & lazy
        if lazy:
            may_wait &= _inside(pages, img.lazy_ranges(images, ns_pid))
            may_wait &= ~np.isin(pages, store.recent_pages(ns_pid, recent_pages), assume_unique=True)
        flags[ours & ~may_wait] = img.PE_PRESENT
        flags[may_wait] = img.PE_LAZY
        in_place += int((ours & ~may_wait).sum())
        _write_pages(images, old.pages_id, pages, slots, flags, ours, store)
        ranges, run_flags = _runs(pages, flags)
        img.write_pagemap(images, img.Pagemap(ns_pid, old.pages_id, ranges, run_flags))
        later.append(LazyPages(ns_pid, pages[may_wait], slots[may_wait]))
    return later, in_place


def _write_pages(
    images: Path,
    pages_id: int,
    pages: Pages,
    slots: npt.NDArray[np.int64],
    flags: npt.NDArray[np.uint32],
    ours: npt.NDArray[np.bool_],
    store: PageStore,
) -> None:
    """The pages file, in the order of the page map: ours out of the store, the others as CRIU wrote them."""
    path = images / f"pages-{pages_id}.img"
    present = (flags & img.PE_PRESENT) != 0
    theirs = np.flatnonzero(present & ~ours)
    written = path.read_bytes() if len(theirs) else b""
    if len(written) < len(theirs) * PAGE_BYTES:
        raise StepFailed(f"{path.name} is shorter than its page map says")
    order = np.flatnonzero(present)
    position_in_file = np.cumsum(present & ~ours) - 1
    with memoryview(store.map) as contents, path.open("wb", buffering=1 << 20) as out:
        at = 0
        while at < len(order):
            i = int(order[at])
            if not ours[i]:
                start = int(position_in_file[i]) * PAGE_BYTES
                out.write(written[start : start + PAGE_BYTES])
                at += 1
                continue
            slot, count = int(slots[i]), 1
            while (
                at + count < len(order)
                and ours[order[at + count]]
                and int(slots[order[at + count]]) == slot + count
            ):
                count += 1
            out.write(contents[slot * PAGE_BYTES : (slot + count) * PAGE_BYTES])
            at += count
