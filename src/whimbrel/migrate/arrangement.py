"""Which pages are in place when a restored program first runs, and where the later ones lie: worked out beside CRIU.

CRIU starts, reads what the processes are and makes their namespaces before it looks at a page map: some 4 ms. Meanwhile
the last pages come, and this, which takes as long for a service of 200 MB. So CRIU waits for the page maps at its point
``setup-namespaces``. Should it ever read one before: as it was dumped it has holes that CRIU cannot restore from, and
the migration is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from whimbrel.checkpoint.images import pagemap_pids
from whimbrel.memory.lazy import LazyServer
from whimbrel.memory.lazyspace import LazySpace
from whimbrel.memory.needed import Needs, Stretches
from whimbrel.memory.ranges import EMPTY, Ranges, intersect, subtract
from whimbrel.memory.reserve import address_of
from whimbrel.memory.store import PageStore, ProcessIndex, pages_of
from whimbrel.memory.supply import MISSING, Supply
from whimbrel.migrate.handover import LazyHandover
from whimbrel.migrate.late import LatePages
from whimbrel.migrate.restoreplan import LazyPages, settle


class Arrangement:
    """`lazy`: the fault server, None where all are in place. When `supplies` is filled, that begins, and whoever brings
    the later pages; should that fail, CRIU is `interrupt`ed."""

    def __init__(
        self,
        images: Path,
        store: PageStore,
        *,
        lazy: LazyServer | None,
        supplies: dict[int, Supply],
        interrupt: Callable[[], None],
    ) -> None:
        self._images, self._store, self._lazy, self._supplies = images, store, lazy, supplies
        self._interrupt = interrupt
        self._later: Mapping[int, Ranges] = {}
        self._late: LatePages | None = None
        self._needs: Needs | None = None
        self._spaces: dict[int, LazySpace] = {}
        self._settling: Future[list[LazyPages]]
        self._supplied = Future[None]()
        self.eager_pages = 0

    def begin(self, later: Mapping[int, Ranges], late: LatePages | None, needs: Needs) -> None:
        """All has come but `later` (byte ranges, by the pid in the container), which `late` brings: in a thread of its
        own."""
        self._later, self._late, self._needs = later, late, needs
        thread = ThreadPoolExecutor(1, "arrangement")
        self._settling = thread.submit(self._settle)
        if self._lazy is not None:
            thread.submit(self._supply_all).add_done_callback(self._say_supplied)
        thread.shutdown(wait=False)

    def settled(self) -> None:
        """Until CRIU may read the page maps. Raises StepFailed when a page exists that never arrived."""
        self._settling.result()

    def listen(self, images_fd: int) -> LazyHandover:
        """For the userfaultfds that CRIU hands over."""
        base = address_of(memoryview(self._store.map))

        def take(ns_pid: int, uffd: int) -> None:
            self._supplied.result()
            assert self._lazy is not None
            assert self._needs is not None
            supply = self._supplies[ns_pid]
            space = LazySpace(uffd, supply, base, gives_back=True, needed=self._needs.of(ns_pid))
            self._spaces[ns_pid] = space
            self._lazy.add(space)

        return LazyHandover(images_fd, len(pagemap_pids(self._images)), take)

    def missed(self) -> dict[int, Stretches]:
        """Where each process had to wait for its pages."""
        return {ns_pid: space.missed() for ns_pid, space in self._spaces.items()}

    def _say_supplied(self, supplying: Future[None]) -> None:
        error = supplying.exception()
        if error is None:
            self._supplied.set_result(None)
        else:
            self._supplied.set_exception(error)
            self._interrupt()  # CRIU must not wait for pages that nobody will serve

    def _settle(self) -> list[LazyPages]:
        lazy = self._lazy is not None
        waiting, self.eager_pages = settle(self._images, self._store, lazy=lazy, behind=self._later)
        return waiting

    def _supply_all(self) -> None:
        for part in self._settling.result():
            self._supplies[part.ns_pid] = self._supply(part, self._later.get(part.ns_pid, EMPTY))
        if self._late is not None:
            self._late.start()
        assert self._lazy is not None
        self._lazy.start()

    def _supply(self, part: LazyPages, later: Ranges) -> Supply:
        """Where the lazy pages of a process are: in the store, or later (whatever older copy the store has)."""
        index = self._store.index.get(part.ns_pid, ProcessIndex())
        pages, slots = index.select(subtract(part.ranges, later))
        written = self._store.recent.get(part.ns_pid, [])
        if not len(later):
            return Supply(pages, slots, written=written)
        late = self._late
        assert late is not None
        missing = pages_of(intersect(part.ranges, later))
        slots = np.concatenate((slots, np.full(len(missing), MISSING)))
        pages = np.concatenate((pages, missing))
        order = np.argsort(pages, kind="stable")
        return Supply(pages[order], slots[order], lambda page: late.ask(part.ns_pid, page), written=written)
