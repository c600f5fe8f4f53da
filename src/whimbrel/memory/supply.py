"""Where the pages of one process of the source are: in the page store already, or still on their way."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from whimbrel.memory.store import UNKNOWN, Pages

MISSING = UNKNOWN


class Supply:
    """`slots[i]` is where page number `pages[i]` (ascending; as the source numbers them) lies in the store, or
    `MISSING`; `ask` is called once for each missing page that somebody waits for."""

    def __init__(self, pages: Pages, slots: npt.NDArray[np.int64], ask: Callable[[int], None] | None = None) -> None:
        self.pages = pages
        self.slots = slots
        self.changed = threading.Event()
        self.lost = False
        self._ask = ask
        self._asked: set[int] = set()

    def request(self, index: int) -> None:
        """Somebody waits for page `index` of `pages`."""
        if self._ask is not None and index not in self._asked:
            self._asked.add(index)
            self._ask(int(self.pages[index]))

    def arrived(self, pages: Pages, slots: npt.NDArray[np.int64]) -> None:
        """`pages` (ascending) now lie in `slots` of the store."""
        at = np.searchsorted(self.pages, pages)
        inside = at < len(self.pages)
        known = np.zeros(len(pages), bool)
        known[inside] = self.pages[at[inside]] == pages[inside]
        self.slots[at[known]] = slots[known]
        self.changed.set()

    def missing(self) -> int:
        return int((self.slots == MISSING).sum())

    def ask_again(self) -> None:
        """The link was cut: whatever was asked for and has not come is asked for anew."""
        asked, self._asked = self._asked, set()
        for index in asked:
            if self.slots[index] == MISSING:
                self.request(index)

    def give_up(self) -> None:
        """The rest will never come."""
        self.lost = True
        self.changed.set()
