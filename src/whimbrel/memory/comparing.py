"""`compare.c` as Python sees it: pages against what crossed of them before, and back."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whimbrel.memory import compiled
from whimbrel.model.units import PAGE_BYTES

Words = npt.NDArray[np.uint64]
"""Contents of pages: shape (n, 512)."""

WORDS_PER_PAGE = PAGE_BYTES // 8
LEAST_BYTES = 64
"""Of one difference: its bitmaps."""
MOST_BYTES = LEAST_BYTES + PAGE_BYTES
"""Of one difference, whoever made it; ours have half of the words at most."""


@dataclass(frozen=True, eq=False)
class Before:
    """What crossed before: page i of a batch is `copies[slots[i]]`, or unknown where `slots[i]` is -1. If it `renews`
    them, what crosses takes the place of those copies, but not of number 0."""

    slots: npt.NDArray[np.int64]
    copies: Words
    renews: bool = False


class Comparison:
    """Compares batches, for one thread; what is as large as a batch stays, and is written in place."""

    def __init__(self) -> None:
        self._differences = np.empty(0, np.uint8)
        self._sum = np.empty(1, np.uint64)
        self._compare = _library().compare

    def of(self, words: Words, codings: npt.NDArray[np.uint8], before: Before) -> tuple[npt.NDArray[np.uint8], int]:
        """Settles in `codings` how each page crosses. Returns the bytes of the differences, good until the next call,
        and the sum of all words of the pages that cross as one."""
        most_bytes = len(words) * (LEAST_BYTES + PAGE_BYTES // 2)
        if len(self._differences) < most_bytes:
            self._differences = np.empty(most_bytes, np.uint8)
        words, slots = np.ascontiguousarray(words), np.ascontiguousarray(before.slots, np.int64)
        size = self._compare(
            words.ctypes.data,
            len(words),
            slots.ctypes.data,
            before.copies.ctypes.data,
            before.renews,
            codings.ctypes.data,
            self._differences.ctypes.data,
            self._sum.ctypes.data,
        )
        return self._differences[:size], int(self._sum[0])


def apply(differences: npt.NDArray[np.uint8], slots: npt.NDArray[np.int64], copies: Words, into: Words) -> bool:
    """Page i of `into` becomes `copies[slots[i]]` and the difference number i. False when these are no differences of
    so many pages."""
    slots = np.ascontiguousarray(slots, np.int64)
    assert into.flags.c_contiguous
    return bool(
        _library().apply(
            differences.ctypes.data,
            len(differences),
            len(slots),
            slots.ctypes.data,
            copies.ctypes.data,
            into.ctypes.data,
        )
    )


@functools.cache
def _library() -> ctypes.CDLL:
    lib = compiled.library("compare")
    array, count = ctypes.c_void_p, ctypes.c_int64
    lib.compare.restype = ctypes.c_int64
    lib.compare.argtypes = (array, count, array, array, ctypes.c_bool, array, array, array)
    lib.apply.restype = ctypes.c_bool
    lib.apply.argtypes = (array, count, count, array, array, array)
    return lib
