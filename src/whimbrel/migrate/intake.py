"""Pages off the page channel and into the page store."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whimbrel.memory.codecs import MAX_BATCH_PAGES, Coding, Codings, Decoder, from_runs, in_block
from whimbrel.memory.store import UNKNOWN, ZERO_SLOT, Pages, PageStore
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.errors import ProtocolMismatch
from whimbrel.model.units import PAGE_BYTES

RUN_BYTES = 16


class PageIntake:
    """Takes PAGES frames. Raw contents go from the socket straight to their place in the store; a block is taken into
    a buffer of its own and unpacked to its place. For one thread."""

    def __init__(self, store: PageStore) -> None:
        self._store = store
        self._decoder = Decoder()
        self._block = bytearray()

    def take(
        self, channel: PageChannel, ns_pid: int, runs: int, size: int, *, recent: bool
    ) -> tuple[Pages, npt.NDArray[np.int64]]:
        """One frame, after its header: `runs` runs and `size` bytes in all; returns its pages and where each lies now.
        `recent`: they were written while we watched.

        Raises ProtocolMismatch for a frame that is wrong in itself or does not fit what came before, StepFailed when
        memory runs short.
        """
        if runs * RUN_BYTES > size or runs > MAX_BATCH_PAGES:
            raise ProtocolMismatch("a frame of pages has more runs than it can hold")
        table = bytearray(runs * RUN_BYTES)
        channel.receive_exactly(memoryview(table))
        pages, codings = from_runs(np.frombuffer(table, np.uint64).reshape(-1, 2))
        counts = np.bincount(codings, minlength=len(Coding)).tolist()
        raw, packed = counts[Coding.RAW], counts[Coding.PACKED] + counts[Coding.DELTA]
        block_bytes = size - len(table) - raw * PAGE_BYTES
        # an encoder sends a block only where it is smaller than the pages in it
        if not (0 < block_bytes <= packed * PAGE_BYTES if packed else block_bytes == 0):
            raise ProtocolMismatch("a frame of pages has another length than its runs")
        first = self._store.used_pages
        with self._store.room_for(raw + packed) as window:
            channel.receive_exactly(window[: raw * PAGE_BYTES])
            if raw == len(pages):
                slots = np.arange(first, first + raw)
            else:
                slots = self._take_coded(channel, ns_pid, pages, codings, block_bytes, first, window)
        self._store.take(raw + packed)
        news = codings != Coding.SAME if counts[Coding.SAME] else slice(None)
        self._store.commit(ns_pid, pages[news], slots[news])
        if recent:
            self._store.written(ns_pid, pages)
        return pages, slots

    def _take_coded(
        self,
        channel: PageChannel,
        ns_pid: int,
        pages: Pages,
        codings: Codings,
        block_bytes: int,
        first: int,
        window: memoryview,
    ) -> npt.NDArray[np.int64]:
        """The block, if there is one, into the rest of `window`, which begins at slot `first`; returns where every
        page lies now."""
        slots = self._known(ns_pid, pages, codings)
        raw, packed = codings == Coding.RAW, in_block(codings)
        raw_pages = int(np.count_nonzero(raw))
        if block_bytes:
            delta = codings[packed] == Coding.DELTA
            into = window[raw_pages * PAGE_BYTES :]
            self._unpack(channel, block_bytes, into, slots[packed][delta], np.flatnonzero(delta))
        slots[raw] = np.arange(first, first + raw_pages)
        slots[packed] = np.arange(first + raw_pages, first + len(window) // PAGE_BYTES)
        slots[codings == Coding.ZERO] = ZERO_SLOT
        return slots

    def _known(self, ns_pid: int, pages: Pages, codings: Codings) -> npt.NDArray[np.int64]:
        """Where the newest copies lie of those pages whose coding builds on them."""
        slots = np.full(len(pages), UNKNOWN, np.int64)
        builds_on = (codings == Coding.DELTA) | (codings == Coding.SAME)
        if builds_on.any():
            slots[builds_on] = self._store.of(ns_pid).find(pages[builds_on])
            if (slots[builds_on] == UNKNOWN).any():
                raise ProtocolMismatch("the source builds on pages that never came here")
        return slots

    def _unpack(
        self,
        channel: PageChannel,
        size: int,
        into: memoryview,
        before: npt.NDArray[np.int64],
        delta: npt.NDArray[np.int64],
    ) -> None:
        if len(self._block) < size:
            self._block = bytearray(size)
        block = memoryview(self._block)[:size]
        channel.receive_exactly(block)
        self._decoder.unpack(block, into, before, self._store.words(), delta)
