"""Where the newest copy of each page lies, whatever the order in which they came; and memory that is there before it is
needed."""

from __future__ import annotations

import mmap
import time

import numpy as np
import pytest

from whimbrel.memory.codecs import Encoder, as_words
from whimbrel.memory.copies import Copies
from whimbrel.memory.ranges import as_ranges
from whimbrel.memory.reserve import Reserve, address_of, populate
from whimbrel.memory.store import TOUCH_PAGES, UNKNOWN, PageStore, ProcessIndex, pages_of
from whimbrel.memory.supply import Supply
from whimbrel.model.errors import StepFailed
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


def in_memory(of: mmap.mmap, pages: int) -> int:
    """How many of the first pages the kernel has given memory."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(8 * (address_of(memoryview(of)) // PAGE_BYTES))
        return int((np.frombuffer(pagemap.read(8 * pages), np.uint64) >> np.uint64(63)).sum())


def wait_for(store: PageStore, pages: int) -> None:
    deadline_s = time.monotonic() + 20
    while in_memory(store.map, 8 * TOUCH_PAGES) < pages:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_the_store_is_ahead_of_what_comes() -> None:
    store = PageStore(TOUCH_PAGES, ahead_pages=TOUCH_PAGES)
    store.wait_touched()
    wait_for(store, 2 * TOUCH_PAGES)
    store.take(TOUCH_PAGES)
    wait_for(store, 3 * TOUCH_PAGES)
    store.touch_no_more()
    store.take(3 * TOUCH_PAGES)
    store._ahead.join(20)
    assert in_memory(store.map, 8 * TOUCH_PAGES) == 3 * TOUCH_PAGES, "ahead, not all there is"
    store.close()


def test_what_was_touched_ahead_can_be_used_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    store = PageStore(2 * TOUCH_PAGES)
    store.wait_touched()
    monkeypatch.setattr("whimbrel.memory.store.short_of_memory", lambda wanted_bytes=0: True)
    for _ in range(2):
        store.room_for(TOUCH_PAGES - 1).release()
        store.take(TOUCH_PAGES - 1)
    with pytest.raises(StepFailed, match="out of memory"):
        store.room_for(TOUCH_PAGES)
    store.close()


def test_a_store_that_expects_nothing_takes_nothing() -> None:
    store = PageStore(0)
    store.wait_touched()
    assert in_memory(store.map, TOUCH_PAGES) == 0
    store.close()


def test_a_reserve_is_there_until_it_is_released() -> None:
    reserve, pages = Reserve((40 << 20) + 5), 40 << 8
    reserve.hold()
    assert in_memory(reserve._map, pages) == pages
    reserve.release(10 << 20)
    assert in_memory(reserve._map, pages) == 30 << 8
    for _ in range(2):
        reserve.release()
        assert in_memory(reserve._map, pages) == 0
    reserve.hold()
    assert in_memory(reserve._map, pages) == 0, "whoever is late takes nothing any more"
    nothing = Reserve(0)
    nothing.hold()
    nothing.release()


def test_no_more_is_taken_than_is_wanted_when_a_step_ends() -> None:
    """Who maps memory meanwhile waits for a step: each is short, and the last one ends it."""
    step_pages, steps = 256, 16
    memory = mmap.mmap(-1, steps * step_pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    wanted = iter([True] * 3 + [False])
    populate(address_of(memoryview(memory)), len(memory), lambda: next(wanted))
    assert in_memory(memory, steps * step_pages) == 3 * step_pages


def test_a_round_makes_short_what_was_written_and_forgets_nothing_of_it() -> None:
    store = PageStore(0)
    rounds = [np.array(pages, np.uint64) for pages in ([3, 5, 9], [5, 7], [5, 9], [11], [3])]
    for pages in rounds:
        store.written(1, pages)
        store.merge()
    assert len(store.recent[1]) == 2
    supply = Supply(np.arange(20, dtype=np.uint64), np.arange(20), written=store.recent[1])
    again, once = supply.first
    assert (again.tolist(), once.tolist()) == ([3, 5, 9], [7, 11])
    store.close()
