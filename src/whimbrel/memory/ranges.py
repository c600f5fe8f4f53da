"""Sets of byte ranges as arrays: shape (n, 2), uint64, rows ``[start, end)``. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from whimbrel.model.units import PAGE_BYTES

Ranges = NDArray[np.uint64]

EMPTY: Ranges = np.empty((0, 2), dtype=np.uint64)
EMPTY.setflags(write=False)


def as_ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """``[(start, end), ...]`` as an array."""
    rows = list(pairs)
    return np.array(rows, dtype=np.uint64).reshape(-1, 2) if rows else EMPTY


def total_bytes(ranges: Ranges) -> int:
    return int((ranges[:, 1] - ranges[:, 0]).sum()) if len(ranges) else 0


def ranges_of(pages: NDArray[np.uint64]) -> Ranges:
    """Ascending page numbers as byte ranges."""
    if len(pages) == 0:
        return EMPTY
    cut = np.flatnonzero(np.diff(pages) != 1) + 1
    first = pages[np.concatenate(([0], cut))]
    last = pages[np.concatenate((cut - 1, [len(pages) - 1]))]
    return np.stack((first, last + np.uint64(1)), axis=1) * np.uint64(PAGE_BYTES)


def union(*parts: Ranges) -> Ranges:
    """All bytes of all parts: sorted, disjoint, neighbours joined."""
    parts = tuple(part for part in parts if len(part))
    if not parts:
        return EMPTY
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    ends = np.maximum.accumulate(rows[:, 1])
    first = np.concatenate(([True], rows[1:, 0] > ends[:-1]))
    last = np.concatenate((first[1:], [True]))
    return np.stack((rows[first, 0], ends[last]), axis=1)


def intersect(ranges: Ranges, keep: Ranges) -> Ranges:
    """The bytes of `ranges` that lie in `keep`. Both must be sorted and disjoint; pieces are split at the
    borders of `keep`."""
    if not len(ranges) or not len(keep):
        return EMPTY
    low = np.searchsorted(keep[:, 1], ranges[:, 0], side="right")
    high = np.searchsorted(keep[:, 0], ranges[:, 1], side="left")
    hits = np.maximum(high - low, 0)
    of = np.repeat(np.arange(len(ranges)), hits)
    within = np.arange(len(of)) - np.repeat(np.cumsum(hits) - hits, hits)
    into = low[of] + within
    return np.stack((np.maximum(ranges[of, 0], keep[into, 0]), np.minimum(ranges[of, 1], keep[into, 1])), axis=1)


def subtract(ranges: Ranges, without: Ranges) -> Ranges:
    """The bytes of `ranges` that do not lie in `without`. Both must be sorted and disjoint."""
    if not len(ranges) or not len(without):
        return ranges
    gaps = np.empty((len(without) + 1, 2), np.uint64)
    gaps[0, 0], gaps[1:, 0] = 0, without[:, 1]
    gaps[:-1, 1], gaps[-1, 1] = without[:, 0], np.iinfo(np.uint64).max
    return intersect(ranges, gaps[gaps[:, 0] < gaps[:, 1]])


def touched(rows: Ranges, by: Ranges) -> NDArray[np.bool_]:
    """For each of `rows` (sorted, disjoint): does any byte of `by` (sorted, disjoint) lie in it?"""
    if not len(rows) or not len(by):
        return np.zeros(len(rows), dtype=np.bool_)
    return np.searchsorted(by[:, 1], rows[:, 0], side="right") < np.searchsorted(by[:, 0], rows[:, 1], side="left")


def gaps(start: int, end: int, inside: Ranges) -> list[tuple[int, int]]:
    """What of `[start, end)` is not in `inside` (sorted, disjoint)."""
    found = []
    for low, high in inside.tolist():
        if high <= start or low >= end:
            continue
        if start < low:
            found.append((start, low))
        start = high
    if start < end:
        found.append((start, end))
    return found


def split(ranges: Ranges, piece_bytes: int) -> Ranges:
    """The same bytes in the same order, no row longer than `piece_bytes`."""
    lengths = ranges[:, 1] - ranges[:, 0]
    if not len(ranges) or int(lengths.max()) <= piece_bytes:
        return ranges
    piece = np.uint64(piece_bytes)
    counts = ((lengths + piece - np.uint64(1)) // piece).astype(np.int64)
    of = np.repeat(np.arange(len(ranges)), counts)
    nth = (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
    starts = ranges[of, 0] + nth * piece
    return np.stack((starts, np.minimum(starts + piece, ranges[of, 1])), axis=1)


def joined(rows: Ranges, gap_bytes: int) -> list[tuple[int, int]]:
    """Few long runs that cover all `rows` (sorted): rows closer than `gap_bytes` share a run."""
    if not len(rows):
        return []
    cut = np.flatnonzero(rows[1:, 0] - rows[:-1, 1] >= np.uint64(gap_bytes)) + 1
    starts = rows[np.concatenate(([0], cut)), 0].tolist()
    ends = rows[np.concatenate((cut - 1, [len(rows) - 1])), 1].tolist()
    return list(zip(starts, ends, strict=True))
