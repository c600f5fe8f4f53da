"""What is done to the batches of one migration, and what was learned from doing it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from whimbrel.memory.batches import BATCH_BYTES, Pages
from whimbrel.memory.codecs import Coded, Coding, Encoder, as_words, to_runs
from whimbrel.memory.copies import Copies
from whimbrel.memory.store import pages_of
from whimbrel.migrate.linkwatch import LinkWatch
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.codec_choice import Choice, Costs, Packing, blend, choose, keeps_copies, trial_is_due
from whimbrel.plan.strategies import Codec

FIRST_BATCH_BYTES = 1 << 18
TRIAL_BATCH_S = 0.01
"""A batch with which raw is tried is what the link is thought to carry in so long."""
SAMPLE_PAGES = 128
"""Of fewer, cold caches and what each call costs are most of the time that packing seems to take."""
SAMPLE_SHARE = 0.01
FEW_BYTES = 4 << 20
NO_COPIES = "no XOR: too little free memory at the source for copies of the pages"


@dataclass(frozen=True, eq=False)
class CodedPages:
    ns_pid: int
    packed: bool
    coded: Coded


class Coder:
    """Codes batch after batch, in the reading thread; the link is watched in the sending thread."""

    def __init__(self, codec: Codec, watch: LinkWatch) -> None:
        self._codec = codec
        self._watch = watch
        self._encoder = Encoder()
        self._copies = Copies()
        self._read_bytes_per_s = 1e9
        self._packing: Packing | None = None
        self._choice = Choice(pack=codec not in (Codec.AUTO, Codec.RAW))
        self._size_bytes = self._left_bytes = 0
        self._begun_s = 0.0
        self._sampled_s = 0.0

    @property
    def remark(self) -> str:
        """What a reader of the record should know; empty when there is nothing."""
        wanted = keeps_copies(self._codec, self._watch.link)
        return NO_COPIES if wanted and self._copies.given_up else ""

    @property
    def shrinks(self) -> float:
        """How many bytes of pages a byte on the link carries, as far as is known."""
        return self._packing.ratio if self._choice.pack and self._packing is not None else 1.0

    def begin(self, size_bytes: int) -> None:
        """Pages of so many bytes come now."""
        self._size_bytes = self._left_bytes = size_bytes
        self._begun_s = time.monotonic()
        self._sampled_s = 0.0
        if not keeps_copies(self._codec, self._watch.link):
            self._copies.drop()
        else:
            self._copies.begin(size_bytes)

    def hurry(self) -> None:
        """The service stands still: from now on nothing is tried to learn from it."""
        self._choice = Choice(pack=self._choice.pack or self._tries_raw, next_trial_s=math.inf)

    def batch_bytes(self) -> int:
        """Small while the link is unknown or raw is tried, and where few pages cross: no batch is sent before it is
        coded."""
        link = self._watch.link
        if self._watch.probe_bytes:
            return self._watch.probe_bytes
        if self._tries_raw or (self._codec is Codec.AUTO and trial_is_due(link, self._choice, time.monotonic())):
            least_bytes = int(link.bytes_per_s * TRIAL_BATCH_S) // PAGE_BYTES * PAGE_BYTES
            return max(FIRST_BATCH_BYTES, min(BATCH_BYTES, least_bytes))
        eighth = self._size_bytes // 8 // PAGE_BYTES * PAGE_BYTES
        return max(FIRST_BATCH_BYTES, min(BATCH_BYTES, eighth))

    @property
    def _tries_raw(self) -> bool:
        return self._choice.trial_looks > self._watch.link.looks

    def __call__(self, pages: Pages) -> CodedPages:
        size_bytes = len(pages.contents)
        self._read_bytes_per_s = blend(self._read_bytes_per_s, size_bytes / max(pages.took_s, 1e-9))
        if self._codec is Codec.AUTO:
            self._choose(pages)
        self._left_bytes -= size_bytes
        return CodedPages(pages.ns_pid, self._choice.pack, self._code(pages))

    def _choose(self, pages: Pages) -> None:
        link = self._watch.link
        if not keeps_copies(self._codec, link):
            self._copies.drop()
        if not self._choice.pack and self._may_sample():
            self._sample(pages)
        costs = Costs(link, self._read_bytes_per_s, self._packing)
        left_bytes = max(self._left_bytes, len(pages.contents))
        self._choice = choose(
            self._codec, costs, left_bytes, self.batch_bytes(), before=self._choice, now_s=time.monotonic()
        )

    def _may_sample(self) -> bool:
        """Once the link is known, the first batch of a round may be sampled, then whatever keeps below `SAMPLE_SHARE`
        of the time. Where few pages cross a fast link, in a freeze, what is known already must do."""
        if self._watch.link.bytes_per_s <= 0 or self._watch.link.is_fast:
            return False
        if self._packing is not None and not self._copies.kept and self._size_bytes < FEW_BYTES:
            return False
        return self._sampled_s <= SAMPLE_SHARE * (time.monotonic() - self._begun_s)

    def _sample(self, pages: Pages) -> None:
        """Pack some pages of a batch that may cross raw, to learn what packing would do."""
        start_s = time.monotonic()
        words = as_words(pages.contents)
        step = max(1, len(words) // SAMPLE_PAGES)
        chosen, names = words[::step].copy(), pages_of(pages.ranges)[::step].copy()
        before = self._copies.before(pages.ns_pid, names)
        runs = to_runs(names, np.zeros(len(names), np.uint8))
        begun_s = time.monotonic()
        coded = self._encoder.packed(runs, chosen.reshape(-1).view(np.uint8).data, before)
        end_s = time.monotonic()
        self._learn(coded, end_s - begun_s)
        self._sampled_s += end_s - start_s

    def _code(self, pages: Pages) -> Coded:
        if not self._choice.pack and not self._copies.kept:
            return self._encoder.plain(pages.ranges, pages.contents)
        numbers = pages_of(pages.ranges)
        if self._tries_raw:  # to keep copies takes longer than a fast link does: it would look like a slow one
            self._copies.forget(pages.ns_pid, numbers)
            return self._encoder.plain(pages.ranges, pages.contents)
        before = self._copies.before(pages.ns_pid, numbers, renews=self._choice.pack)
        if self._choice.pack:
            start_s = time.monotonic()
            coded = self._encoder.packed(pages.ranges, pages.contents, before)
            self._learn(coded, time.monotonic() - start_s)
        else:
            coded = self._encoder.plain(pages.ranges, pages.contents)
        if before is not None:
            self._copies.keep(pages.ns_pid, numbers, as_words(pages.contents), coded, before)
        return coded

    def _learn(self, coded: Coded, took_s: float) -> None:
        filled_bytes = (len(coded.codings) - coded.count(Coding.ZERO)) * PAGE_BYTES
        if not filled_bytes:
            return
        seen = Packing(filled_bytes / max(took_s, 1e-9), filled_bytes / max(coded.wire_bytes, 1))
        self._packing = seen if self._packing is None else self._packing.blended(seen)

    def close(self) -> None:
        self._copies.drop()
