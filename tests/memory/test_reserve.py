"""Memory that is put at hand ahead, in steps short enough that who maps memory meanwhile does not wait for it."""

from __future__ import annotations

import mmap

import numpy as np

from whimbrel.memory.reserve import Reserve, address_of, populate
from whimbrel.model.units import PAGE_BYTES

STEP_BYTES = 1 << 20


def in_memory(of: mmap.mmap, size_bytes: int) -> int:
    """How many of its bytes have memory."""
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(8 * (address_of(memoryview(of)) // PAGE_BYTES))
        entries = np.frombuffer(pagemap.read(8 * (size_bytes // PAGE_BYTES)), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * PAGE_BYTES


def test_no_more_is_taken_than_is_wanted_when_a_step_ends() -> None:
    size_bytes = 16 * STEP_BYTES
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    wanted = iter([True] * 3 + [False])
    populate(address_of(memoryview(memory)), size_bytes, lambda: next(wanted))
    assert in_memory(memory, size_bytes) == 3 * STEP_BYTES


def test_what_is_held_is_there_until_it_is_released_a_part_or_all_and_not_taken_after_that() -> None:
    size_bytes = 8 * STEP_BYTES
    reserve = Reserve(size_bytes)
    reserve.hold()
    assert in_memory(reserve._map, size_bytes) == size_bytes
    reserve.release(3 * STEP_BYTES)
    assert in_memory(reserve._map, size_bytes) == 5 * STEP_BYTES
    reserve.release()
    assert in_memory(reserve._map, size_bytes) == 0
    reserve.hold()
    assert in_memory(reserve._map, size_bytes) == 0
