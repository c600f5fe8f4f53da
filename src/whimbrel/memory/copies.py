"""The source's copies of the pages as they last crossed, so that next time their difference may cross instead."""

from __future__ import annotations

import numpy as np

from whimbrel.memory.codecs import Coded, Coding
from whimbrel.memory.comparing import Before, Words
from whimbrel.memory.store import UNKNOWN, ZERO_SLOT, Pages, PageStore, short_of_memory
from whimbrel.model.errors import StepFailed

SPARE = 1.1


class Copies:
    """One copy of each page, replaced when it crosses again. For one thread.

    Every page that crosses is told to `keep` or to `forget`, or the copies are given up: one that is out of date would
    make a wrong difference.
    """

    def __init__(self) -> None:
        self._store: PageStore | None = None
        self._given_up = False

    @property
    def kept(self) -> bool:
        return self._store is not None

    @property
    def given_up(self) -> bool:
        return self._given_up

    def begin(self, expected_bytes: int) -> bool:
        """From now on copies are kept. False when there is too little memory for so many."""
        if self._store is None and not self._given_up:
            if short_of_memory(int(expected_bytes * SPARE)):
                self._given_up = True
            else:
                self._store = PageStore(0)
        return self._store is not None

    def before(self, ns_pid: int, pages: Pages, *, renews: bool = False) -> Before | None:
        """The copies of ascending `pages`; None when none are kept."""
        if self._store is None:
            return None
        return Before(self._store.of(ns_pid).find(pages), self._store.words(), renews)

    def keep(self, ns_pid: int, pages: Pages, words: Words, coded: Coded, before: Before) -> None:
        """`pages` cross with the contents `words`, `before` was known of them. Gives all copies up when memory runs
        short."""
        if self._store is None:
            return
        own = before.slots > ZERO_SLOT
        if not before.renews and own.all():
            before.copies[before.slots] = words
        elif not before.renews:
            before.copies[before.slots[own]] = words[own]
        zero = coded.codings == Coding.ZERO
        slots = before.slots.copy()
        slots[zero & (slots == UNKNOWN)] = ZERO_SLOT
        fresh = ~zero & ~own
        count = int(np.count_nonzero(fresh))
        if count:
            try:
                with self._store.room_for(count) as window:
                    np.frombuffer(window, np.uint64).reshape(count, -1)[:] = words if fresh.all() else words[fresh]
            except StepFailed:
                self.give_up()
                return
            slots[fresh] = np.arange(self._store.used_pages, self._store.used_pages + count)
            self._store.take(count)
        changed = slots != before.slots
        self._store.of(ns_pid).note(pages[changed], slots[changed])

    def forget(self, ns_pid: int, pages: Pages) -> None:
        """`pages` cross, and no copies of them are kept: the old ones' room is lost."""
        if self._store is not None:
            self._store.of(ns_pid).note(pages, np.full(len(pages), UNKNOWN, np.int64))

    def drop(self) -> None:
        """Free what is kept; `begin` may start anew."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def give_up(self) -> None:
        """Free what is kept, for good."""
        self._given_up = True
        self.drop()
