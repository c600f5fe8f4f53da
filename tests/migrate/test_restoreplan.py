"""CRIU's images made ready for the restore: what is written into its pages file, and what comes later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.checkpoint import images as img
from whimbrel.memory.ranges import Ranges, as_ranges
from whimbrel.memory.store import PageStore
from whimbrel.migrate.restoreplan import settle
from whimbrel.model.units import PAGE_BYTES

P = PAGE_BYTES


def rows(*pairs: tuple[int, int]) -> Ranges:
    return as_ranges((first * P, last * P) for first, last in pairs)


def page(number: int) -> bytes:
    return bytes([number]) * P


def settled(folder: Path, *, lazy: bool) -> tuple[img.Pagemap, bytes, list[list[tuple[int, int]]]]:
    """A process of which CRIU wrote pages 20 to 22 marked as to come later, and page 40; 10 and 11 are ours."""
    flags = [img.PE_PARENT, img.PE_LAZY | img.PE_PRESENT, img.PE_PRESENT]
    ranges = rows((10, 12), (20, 23), (40, 41))
    img.write_pagemap(folder, img.Pagemap(1, 1, ranges, np.array(flags, np.uint32)))
    img.write_mappings(folder, 1, rows((10, 30)))
    (folder / "pages-1.img").write_bytes(b"".join(map(page, (20, 21, 22, 40))))
    store = PageStore(0)
    with store.room_for(2) as window:
        window[:] = page(10) + page(11)
    store.take(2)
    store.commit(1, np.array([10, 11], np.uint64), np.array([1, 2]))
    try:
        later, _ = settle(folder, store, lazy=lazy, behind={})
    finally:
        store.close()
    parts = [[(start // P, end // P) for start, end in part.ranges.tolist()] for part in later]
    return img.read_pagemap(folder, 1), (folder / "pages-1.img").read_bytes(), parts


@pytest.mark.parametrize("lazy", [True, False])
def test_pages_that_criu_wrote_although_it_called_them_lazy(tmp_path: Path, lazy: bool) -> None:
    """As it does for a process that was forked when the dump had begun: none of its pages may take another's place."""
    pagemap, contents, later = settled(tmp_path, lazy=lazy)
    theirs = b"".join(map(page, (20, 21, 22, 40)))
    assert contents == (theirs if lazy else page(10) + page(11) + theirs)
    assert later == [[(10, 12)] if lazy else []]
    assert pagemap.ranges.tolist() == rows((10, 12), (20, 23), (40, 41)).tolist()
    assert pagemap.flags.tolist() == [img.PE_LAZY if lazy else img.PE_PRESENT, img.PE_PRESENT, img.PE_PRESENT]


def test_memory_that_is_wiped_in_children_is_never_lazy(tmp_path: Path) -> None:
    mm = pb.MmEntry()
    for start, madv in ((10, 0), (20, img.WIPE_ON_FORK)):
        mm.vmas.add(
            start=start * P, end=(start + 5) * P, flags=img.MAP_PRIVATE | img.MAP_ANONYMOUS, pgoff=0, shmid=0, prot=3,
            status=0, fd=-1, madv=madv,
        )  # fmt: skip
    img._write(tmp_path / "mm-1.img", img.MM_MAGIC, [mm.SerializePartialToString()])
    assert img.lazy_ranges(tmp_path, 1).tolist() == rows((10, 15)).tolist()
