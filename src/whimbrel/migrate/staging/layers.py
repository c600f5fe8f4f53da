"""Memory as a chain of CRIU image layers: each holds the pages of one round and points to the layer before.

CRIU's own ``pre-dump`` writes such a chain where the kernel tracks soft-dirty bits. Here the pages come from our
tracker; the files are the same, so CRIU restores from them by itself. A layer's page map must list *every* page
known by then: those it holds as present, the others as held by its parent (`train` IV step 2, `fast` III-B).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from whimbrel.checkpoint.images import PE_PARENT, PE_PRESENT, Pagemap, write_pagemap
from whimbrel.memory.batches import Pages
from whimbrel.memory.ranges import EMPTY, Ranges, subtract, total_bytes, union
from whimbrel.migrate.pace import Pace
from whimbrel.model.units import PAGE_BYTES

PARENT = "parent"


class Piece(NamedTuple):
    """A row of a page map: `flags` is PE_PRESENT or PE_PARENT."""

    start: int
    end: int
    flags: int


@dataclass
class KnownPages:
    """Which pages the layers so far hold, per process. What page maps of a new layer must list beside its own."""

    ranges: dict[int, Ranges] = field(default_factory=dict)

    def map_with(self, ns_pid: int, own: Ranges) -> list[Piece]:
        """The page map of a layer that holds `own` of this process, in order of address."""
        before = subtract(self.ranges.get(ns_pid, EMPTY), own)
        pieces = [Piece(start, end, PE_PRESENT) for start, end in own.tolist()]
        pieces += [Piece(start, end, PE_PARENT) for start, end in before.tolist()]
        return sorted(pieces)

    def add(self, ns_pid: int, own: Ranges) -> None:
        self.ranges[ns_pid] = union(self.ranges.get(ns_pid, EMPTY), own)


class LayerFiles:
    """Layers as directories ``1``, ``2``, … of one folder, written no faster than `pace` says. Blocks."""

    def __init__(self, folder: Path, pace: Pace) -> None:
        self.folder = folder
        self._pace = pace
        self._known = KnownPages()

    def write(self, number: int, batches: Iterable[Pages], ns_pids: Collection[int]) -> int:
        """Write layer `number` from batches (per process in order of address); `ns_pids` are the processes that
        live now. Returns how many pages it holds."""
        layer = self.folder / str(number)
        layer.mkdir(parents=True)
        if number > 1:
            (layer / PARENT).symlink_to(f"../{number - 1}")
        own: dict[int, list[Ranges]] = {ns_pid: [] for ns_pid in ns_pids}
        with ExitStack() as stack:
            files: dict[int, FileIO] = {}
            for batch in batches:
                if batch.ns_pid not in files:
                    path = layer / f"pages-{batch.ns_pid}.img"
                    files[batch.ns_pid] = stack.enter_context(FileIO(path, "wb"))
                self._write_contents(files[batch.ns_pid], batch.contents)
                own.setdefault(batch.ns_pid, []).append(batch.ranges)
        pages = 0
        for ns_pid, parts in own.items():
            (layer / f"pages-{ns_pid}.img").touch()
            ranges = union(*parts)
            self._write_map(layer, ns_pid, ranges)
            self._known.add(ns_pid, ranges)
            pages += total_bytes(ranges) // PAGE_BYTES
        return pages

    def _write_contents(self, file: FileIO, contents: memoryview) -> None:
        for piece in self._pace.pieces(contents):
            while piece := piece[file.write(piece) or 0 :]:
                continue
        if self._pace.bytes_per_s:  # else the kernel may keep it, and write all of it at once
            os.fdatasync(file.fileno())

    def _write_map(self, layer: Path, ns_pid: int, own: Ranges) -> None:
        pieces = self._known.map_with(ns_pid, own)
        ranges = np.array([(piece.start, piece.end) for piece in pieces], np.uint64).reshape(-1, 2)
        flags = np.array([piece.flags for piece in pieces], np.uint32)
        write_pagemap(layer, Pagemap(ns_pid, ns_pid, ranges, flags))
