"""What a program waited for after it had arrived, kept for its next journey: it will read the same again.

Which pages are written can be seen while the program runs; which ones are only read cannot. But those that it reads
first are the ones it had to wait for last time. (To record what a restored program touches, and to bring that first at
the next restore, is known from serverless functions: REAP, Ustiugov et al., ASPLOS 2021.)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from whimbrel.memory.store import Pages, runs_of

Stretches = npt.NDArray[np.int64]
"""Shape (n, 2): first page number, how many; in the order in which they were needed."""
NOTHING: Stretches = np.empty((0, 2), np.int64)
MOST_PAGES, MOST_STRETCHES, MOST_PROCESSES = 1 << 18, 1 << 13, 1 << 12
"""So much is kept at most, the first two of each process."""
HIGHEST_PAGE = 1 << 52


def both(first: Stretches, then: Stretches) -> Stretches:
    """One after the other, each page where it comes first; no more than is kept."""
    pages = np.concatenate((_expanded(first), _expanded(then)))[:MOST_PAGES]
    _, at = np.unique(pages, return_index=True)
    return runs_of(pages[np.sort(at)])[:MOST_STRETCHES]


def found_in(pages: Pages, stretches: Stretches) -> Stretches:
    """The same as (first index, how many) of the ascending `pages`, without what is not among them."""
    low = np.searchsorted(pages, stretches[:, 0].astype(np.uint64))
    high = np.searchsorted(pages, stretches.sum(axis=1).astype(np.uint64))
    found: Stretches = np.stack((low, high - low), axis=1)[high > low].astype(np.int64)
    return found


def _expanded(stretches: Stretches) -> npt.NDArray[np.int64]:
    starts, counts = stretches[:, 0], stretches[:, 1]
    ends = np.cumsum(counts)
    pages: npt.NDArray[np.int64] = np.arange(counts.sum()) + np.repeat(starts - (ends - counts), counts)
    return pages


def pack(needed: dict[int, Stretches]) -> dict[int, bytes]:
    return {ns_pid: np.ascontiguousarray(stretches, np.int64).tobytes() for ns_pid, stretches in needed.items()}


def unpack(packed: dict[int, bytes]) -> dict[int, Stretches]:
    """Raises ValueError for nonsense."""
    if len(packed) > MOST_PROCESSES:
        raise ValueError(f"stretches of more than {MOST_PROCESSES} processes")
    needed = {ns_pid: np.frombuffer(raw, np.int64).reshape(-1, 2) for ns_pid, raw in packed.items()}
    for stretches in needed.values():
        bad = len(stretches) > MOST_STRETCHES or (stretches < 0).any() or (stretches[:, 0] > HIGHEST_PAGE).any()
        if bad or (stretches[:, 1] > MOST_PAGES).any() or stretches[:, 1].sum() > MOST_PAGES:  # a sum alone may wrap
            raise ValueError("these are no stretches of pages")
    return needed


def save(file: Path, needed: dict[int, Stretches]) -> None:
    """Whole or not at all."""
    new = file.with_name(f"{file.name}.new")
    new.write_bytes(msgspec.msgpack.encode(pack(needed)))
    new.rename(file)


def load(file: Path, ns_pids: Iterable[int]) -> dict[int, bytes]:
    """Of these processes, packed; nothing where nothing can be read: it only tells what to begin with."""
    try:
        packed = msgspec.msgpack.decode(file.read_bytes(), type=dict[int, bytes])
        unpack(packed)
    except (OSError, ValueError, msgspec.DecodeError):
        return {}
    return {ns_pid: packed[ns_pid] for ns_pid in ns_pids if ns_pid in packed}


class Needs:
    """What the processes of one service needed first, by the pid in the container; `file` keeps it for the next time.
    Raises ValueError for nonsense."""

    def __init__(self, file: Path, packed: dict[int, bytes]) -> None:
        self._file = file
        self._last = unpack(packed)

    def of(self, ns_pid: int) -> Stretches:
        return self._last.get(ns_pid, NOTHING)

    def keep(self, missed: dict[int, Stretches]) -> None:
        """What was waited for this time comes first next time, before what was there in time because it was known."""
        save(self._file, self._last | {ns_pid: both(now, self.of(ns_pid)) for ns_pid, now in missed.items()})
