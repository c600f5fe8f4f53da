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
        self._library = library()
        self._room_bytes = constant("ROOM_BYTES")

    def of(self, words: Words, codings: npt.NDArray[np.uint8], before: Before) -> tuple[npt.NDArray[np.uint8], int]:
        """Settles in `codings` how each page crosses. Returns the bytes of the differences, good until the next call,
        and the sum of all words of the pages that cross as one."""
        most_bytes = len(words) * self._room_bytes
        if len(self._differences) < most_bytes:
            self._differences = np.empty(most_bytes, np.uint8)
        words, slots = np.ascontiguousarray(words), np.ascontiguousarray(before.slots, np.int64)
        size = self._library.compare(
            words.ctypes.data,
            len(words),
            slots.ctypes.data,
            before.copies.ctypes.data,
            len(before.copies),
            before.renews,
            codings.ctypes.data,
            self._differences.ctypes.data,
            self._sum.ctypes.data,
        )
        return self._differences[:size], int(self._sum[0])


def apply(
    differences: npt.NDArray[np.uint8],
    slots: npt.NDArray[np.int64],
    copies: Words,
    places: npt.NDArray[np.int64],
    into: Words,
) -> bool:
    """Page number `places[i]` of `into` becomes `copies[slots[i]]` and the difference number i. False when these are no
    differences of so many pages, or there is no such copy. Raises IndexError for a place that is not there."""
    slots, places = np.ascontiguousarray(slots, np.int64), np.ascontiguousarray(places, np.int64)
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(into):
        raise IndexError("a difference without a place")
    assert into.flags.c_contiguous
    assert copies.flags.c_contiguous
    return bool(
        library().apply(
            differences.ctypes.data,
            len(differences),
            len(slots),
            slots.ctypes.data,
            copies.ctypes.data,
            len(copies),
            places.ctypes.data,
            into.ctypes.data,
        )
    )


def bounds_bytes(differences: int) -> tuple[int, int]:
    """How long so many differences are, at least and at most, whoever made them; ours stay below."""
    least_bytes = constant("LEAST_BYTES")
    return differences * least_bytes, differences * (least_bytes + PAGE_BYTES)


def constant(name: str) -> int:
    """One of the numbers that `compare.c` goes by."""
    return ctypes.c_int.in_dll(library(), name).value


@functools.cache
def library() -> ctypes.CDLL:
    """Raises StepFailed where it cannot be used (see `compiled`)."""
    lib = compiled.library("compare")
    array, count = ctypes.c_void_p, ctypes.c_int64
    lib.compare.restype = ctypes.c_int64
    lib.compare.argtypes = (array, count, array, array, count, ctypes.c_bool, array, array, array)
    lib.apply.restype = ctypes.c_bool
    lib.apply.argtypes = (array, count, count, array, array, count, array, array)
    return lib
