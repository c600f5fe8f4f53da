"""What is done to batches, by what was learned from those before: real pages, and a link that is what a test says."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from whimbrel.memory.batches import BATCH_BYTES, Pages
from whimbrel.memory.codecs import Coding
from whimbrel.memory.comparing import WORDS_PER_PAGE, Words
from whimbrel.memory.ranges import as_ranges
from whimbrel.migrate.coder import FIRST_BATCH_BYTES, Coder
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.codec_choice import TRIAL_LOOKS, Choice, Link
from whimbrel.plan.strategies import Codec

PAGES = 512
SLOW = Link(seen_bytes_per_s=12.5e6, certain=True, looks=5)
"""100 Mbit/s: packing pays if it makes pages a little smaller."""


@dataclass
class Watch:
    link: Link = field(default=SLOW)
    probe_bytes: int = 0


def coder(watch: Watch | None = None) -> Coder:
    given: Any = watch or Watch()
    return Coder(Codec.AUTO, given)


def batch(words: Words) -> Pages:
    ranges = as_ranges([(PAGE_BYTES, PAGE_BYTES * (1 + len(words)))])
    return Pages(1, ranges, words.reshape(-1).view(np.uint8).data, 0.001)


def noise(seed: int) -> Words:
    return np.random.default_rng(seed).integers(0, 2**64, (PAGES, WORDS_PER_PAGE), np.uint64)


def until_raw_is_tried(one: Coder, words: Words) -> None:
    """Where packing pays, raw is tried now and then, for the link may carry more than was seen."""
    packed: list[bool] = []
    deadline = time.monotonic() + 20
    while not packed or packed[-1] or not any(packed):
        packed.append(one(batch(words)).packed)
        assert time.monotonic() < deadline, "it never tries"


def test_while_raw_is_tried_nothing_is_kept() -> None:
    """Keeping would set the pace, and the link would look slow; what then crossed is no ground for a difference."""
    watch = Watch()
    one, words = coder(watch), np.repeat(noise(2)[:, :8], WORDS_PER_PAGE // 8, axis=1)
    one.begin(words.nbytes)
    until_raw_is_tried(one, words)
    assert one.batch_bytes() == FIRST_BATCH_BYTES
    watch.link = replace(SLOW, saturated=True, looks=SLOW.looks + TRIAL_LOOKS)  # the link is as slow as was thought
    for known in (False, True):
        again = one(batch(words))
        assert again.packed
        assert bool(again.coded.count(Coding.SAME)) is known, "what was tried raw is known only when it crossed again"
    one.close()


@pytest.mark.parametrize(
    ("bytes_per_s", "expected_bytes"), [(12.5e6, 256 << 10), (125e6, 1_249_280), (249e6, BATCH_BYTES)]
)
def test_raw_is_tried_in_batches_of_ten_milliseconds(bytes_per_s: float, expected_bytes: int) -> None:
    """Small ones would show how long this machine takes to wake up; large ones hold a slow link up."""
    one = coder(Watch(replace(SLOW, seen_bytes_per_s=bytes_per_s)))
    one.begin(1 << 30)
    one._choice = Choice(pack=True, next_trial_s=math.inf)
    assert one.batch_bytes() == BATCH_BYTES
    one._choice = Choice(pack=True)  # the next one may be a trial
    assert one.batch_bytes() == expected_bytes
    one._choice = Choice(pack=False, trial_looks=SLOW.looks + 1)
    assert one.batch_bytes() == expected_bytes
    one.close()


def test_as_long_as_the_link_is_unknown_batches_are_as_it_wants_them() -> None:
    watch = Watch(Link(), probe_bytes=1 << 18)
    one = coder(watch)
    one.begin(1 << 30)
    assert one.batch_bytes() == 1 << 18
    watch.probe_bytes = 1 << 20
    assert one.batch_bytes() == 1 << 20
    watch.probe_bytes = 0
    assert one.batch_bytes() == BATCH_BYTES
    one.close()


def test_in_a_hurry_nothing_is_tried() -> None:
    one, words = coder(), np.repeat(noise(2)[:, :8], WORDS_PER_PAGE // 8, axis=1)
    one.begin(words.nbytes)
    until_raw_is_tried(one, words)
    one.hurry()
    one.begin(words.nbytes)
    begun = time.monotonic()
    while time.monotonic() < begun + 1.0:
        assert one(batch(words)).packed
    one.close()
