"""Where the pages of one process of the source are: in the page store already, or still on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from whimbrel.memory.ranges import Ranges, intersect, ranges_of, total_bytes
from whimbrel.memory.store import UNKNOWN, Pages
from whimbrel.model.units import PAGE_BYTES

MISSING = UNKNOWN
Indices = npt.NDArray[np.int64]


class Supply:
    """`slots[i]` is where page number `pages[i]` (ascending; as the source numbers them) lies in the store, or
    `MISSING`; `ask` is called once for each missing page that somebody waits for. `written`: page numbers, in any order
    and often, that are wanted before the others."""

    def __init__(
        self,
        pages: Pages,
        slots: npt.NDArray[np.int64],
        ask: Callable[[int], None] | None = None,
        *,
        written: Sequence[Pages] = (),
    ) -> None:
        self.pages = pages
        self.slots = slots
        self._written = written
        self.lost = False
        self._ask = ask
        self._asked: set[int] = set()

    @cached_property
    def first(self) -> tuple[Indices, Indices]:
        """Which ones are wanted before the others: what was written again and again, and what was written once."""
        written = np.concatenate((self.pages[:0], *self._written))
        times = np.bincount(self._known(written)[0], minlength=len(self.pages))
        return np.flatnonzero(times > 1), np.flatnonzero(times == 1)

    def _known(self, pages: Pages) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Which ones `pages` are here, and which of them are here at all."""
        at = np.searchsorted(self.pages, pages)
        known = np.zeros(len(pages), bool)
        inside = at < len(self.pages)
        known[inside] = self.pages[at[inside]] == pages[inside]
        return at[known], known

    def request(self, index: int) -> None:
        """Somebody waits for page `index` of `pages`."""
        if self._ask is not None and index not in self._asked:
            self._asked.add(index)
            self._ask(int(self.pages[index]))

    def arrived(self, pages: Pages, slots: npt.NDArray[np.int64]) -> Indices:
        """`pages` (ascending) now lie in `slots` of the store. Returns which ones they are here."""
        found, known = self._known(pages)
        self.slots[found] = slots[known]
        return found

    def missing(self, ranges: Ranges | None = None) -> int:
        """How many pages, of all or of these byte ranges, are still on their way."""
        missing = self.pages[self.slots == MISSING]
        return len(missing) if ranges is None else total_bytes(intersect(ranges_of(missing), ranges)) // PAGE_BYTES

    def ask_again(self) -> None:
        """The link was cut: whatever was asked for and has not come is asked for anew."""
        asked, self._asked = self._asked, set()
        for index in list(asked):  # the thread that answers faults may be adding to it still
            if self.slots[index] == MISSING:
                self.request(index)

    def give_up(self) -> None:
        """The rest will never come."""
        self.lost = True
