"""Where the newest copy of each page lies, whatever the order in which they came."""

from __future__ import annotations

import numpy as np

from whimbrel.memory.codecs import Encoder, as_words
from whimbrel.memory.copies import Copies
from whimbrel.memory.ranges import as_ranges
from whimbrel.memory.store import UNKNOWN, ProcessIndex, pages_of
from whimbrel.model.units import PAGE_BYTES


def test_the_newest_copy_is_found_whatever_came_when() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        index, known = ProcessIndex(), dict[int, int]()
        for slot in range(0, 1000, 100):
            pages = np.unique(rng.integers(0, 60, rng.integers(1, 20)).astype(np.uint64)) + np.uint64(rng.integers(40))
            slots = slot + np.arange(len(pages))
            index.note(pages, slots)
            known |= zip(pages.tolist(), slots.tolist(), strict=True)
            wanted = np.unique(rng.integers(0, 110, rng.integers(0, 30)).astype(np.uint64))
            assert index.find(wanted).tolist() == [known.get(page, UNKNOWN) for page in wanted.tolist()]


def test_a_first_pass_is_sorted_in_once() -> None:
    """To take in each batch for the next one's look-up would take time with the square of the memory."""
    index = ProcessIndex()
    for first in range(0, 1000, 10):
        pages = np.arange(first, first + 10, dtype=np.uint64)
        assert (index.find(pages) == UNKNOWN).all()
        index.note(pages, pages.astype(np.int64))
        assert not len(index.pages)
    assert (index.find(np.arange(1000, dtype=np.uint64)) == np.arange(1000)).all()


def test_of_pages_that_were_forgotten_no_copy_is_known() -> None:
    copies, encoder = Copies(), Encoder()
    ranges = as_ranges([(PAGE_BYTES, 9 * PAGE_BYTES)])
    pages, words = pages_of(ranges), np.ones((8, PAGE_BYTES // 8), np.uint64)
    contents = words.reshape(-1).view(np.uint8).data
    copies.forget(1, pages)  # before any are kept: nothing happens
    copies.begin(len(contents))

    def keep() -> list[bool]:
        before = copies.before(1, pages)
        assert before is not None
        known = (before.slots != UNKNOWN).tolist()
        copies.keep(1, pages, as_words(contents), encoder.packed(ranges, contents, before), before)
        return known

    assert keep() == [False] * 8
    copies.forget(1, pages[2:4])
    assert keep() == [True, True, False, False, True, True, True, True]
    assert keep() == [True] * 8
    copies.drop()
