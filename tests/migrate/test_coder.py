"""What is done to batches, by what was learned from those before: real pages, and a link that is what a test says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whimbrel.memory.batches import Pages
from whimbrel.memory.codecs import WORDS_PER_PAGE, Words
from whimbrel.memory.ranges import as_ranges
from whimbrel.migrate.coder import Coder
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.codec_choice import Link
from whimbrel.plan.strategies import Codec

PAGES = 512
SLOW = Link(seen_bytes_per_s=12.5e6, certain=True, looks=5)
"""100 Mbit/s: packing pays if it makes pages a little smaller."""


@dataclass
class Watch:
    link: Link = field(default=SLOW)


def coder(link: Link = SLOW) -> Coder:
    watch: Any = Watch(link)
    return Coder(Codec.AUTO, watch)


def batch(words: Words) -> Pages:
    ranges = as_ranges([(PAGE_BYTES, PAGE_BYTES * (1 + len(words)))])
    return Pages(1, ranges, words.reshape(-1).view(np.uint8).data, 0.001)


def noise(seed: int) -> Words:
    return np.random.default_rng(seed).integers(0, 2**64, (PAGES, WORDS_PER_PAGE), np.uint64)


def test_in_a_hurry_nothing_is_tried() -> None:
    """Where packing pays, raw is tried now and then, for the link may carry more than was seen; not in a freeze."""
    one, words = coder(), np.repeat(noise(2)[:, :8], WORDS_PER_PAGE // 8, axis=1)
    one.begin(words.nbytes)
    packed = []
    deadline = time.monotonic() + 5
    while not packed or packed[-1] or not any(packed):  # until it has packed, and tries raw again
        packed.append(one(batch(words)).packed)
        assert time.monotonic() < deadline, "it never tries"
    one.hurry()
    one.begin(words.nbytes)
    begun = time.monotonic()
    while time.monotonic() < begun + 1.0:
        assert one(batch(words)).packed
    one.close()
