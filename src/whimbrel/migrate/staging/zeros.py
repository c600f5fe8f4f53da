"""Pages of zeros are left out of layers, and in the end out of CRIU's page map: what is not in there, is not filled.

CRIU's own dump leaves a page out that has never been written (the kernel's zero page, ``should_dump_page``): at the
restore it is absent from fresh anonymous memory, and reads as zeros. The same holds for a page that was written, and
holds zeros. But only of anonymous memory: in a private mapping of a file an absent page is the file's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from whimbrel.checkpoint.images import PE_PARENT, PE_PRESENT, lazy_ranges, pagemap_pids, read_pagemap, write_pagemap
from whimbrel.memory.batches import Pages
from whimbrel.memory.codecs import as_words, zero_pages
from whimbrel.memory.ranges import EMPTY, Ranges, intersect, ranges_of, subtract, union
from whimbrel.memory.store import pages_of
from whimbrel.memory.tracker import ProcessPages


class Zeros:
    """Which pages held nothing but zeros when they were read last, per process (pid in the container); `count`: how
    many were left out so far."""

    def __init__(self) -> None:
        self.count = 0
        self._ranges: dict[int, Ranges] = {}

    def left_out_of(self, batches: Iterable[Pages], only_in: Mapping[int, Ranges] | None = None) -> Iterator[Pages]:
        """The batches without their pages of zeros; with `only_in` those elsewhere stay."""
        for batch in batches:
            words = as_words(batch.contents)
            zero = zero_pages(words)
            pages = pages_of(batch.ranges)
            if only_in is not None and zero.any():
                zero &= np.isin(pages, pages_of(intersect(batch.ranges, only_in.get(batch.ns_pid, EMPTY))))
            before = self._ranges.get(batch.ns_pid, EMPTY)
            if not zero.any():
                self._ranges[batch.ns_pid] = subtract(before, batch.ranges)
                yield batch
                continue
            self.count += int(np.count_nonzero(zero))
            self._ranges[batch.ns_pid] = union(subtract(before, batch.ranges), ranges_of(pages[zero]))
            if not zero.all():
                contents = memoryview(words[~zero].tobytes())
                yield batch._replace(ranges=ranges_of(pages[~zero]), contents=contents)

    def outside(self, allowed: Mapping[int, Ranges], processes: Iterable[ProcessPages]) -> list[ProcessPages]:
        """Of these processes what was left out, but must not be."""
        return [
            replace(process, ranges=subtract(known, allowed.get(process.ns_pid, EMPTY)))
            for process in processes
            if len(known := self._ranges.get(process.ns_pid, EMPTY))
        ]

    def settle(self, images: Path) -> None:
        """Of what CRIU's dump leaves to its parent, take the pages of zeros out of the page maps; the layers hold all
        else, also pages of which CRIU says that they come later ("lazy"), as it does of a process that started after
        the dump's parent was made."""
        for ns_pid in pagemap_pids(images):
            found = read_pagemap(images, ns_pid)
            later = (found.flags & PE_PRESENT) == 0
            zeros = intersect(self._ranges.get(ns_pid, EMPTY), lazy_ranges(images, ns_pid))
            left = subtract(found.ranges[later], zeros)
            ranges = np.concatenate((found.ranges[~later], left))
            flags = np.concatenate((found.flags[~later], np.full(len(left), PE_PARENT, np.uint32)))
            order = np.argsort(ranges[:, 0], kind="stable")
            write_pagemap(images, replace(found, ranges=ranges[order], flags=flags[order]))


def droppable(images: Path) -> dict[int, Ranges]:
    """Memory of each process in which an absent page reads as zeros, by CRIU's images of it."""
    return {ns_pid: lazy_ranges(images, ns_pid) for ns_pid in pagemap_pids(images)}
