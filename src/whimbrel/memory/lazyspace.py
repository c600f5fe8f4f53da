"""What one restored address space still lacks, and how it is put there: by userfaultfd, page by page or run by run.

In this order: what the program waits for, what follows the place it waited at, what it wrote while it was watched, and
then the rest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import struct
import threading
import time

import numpy as np

from whimbrel.memory.store import Pages
from whimbrel.memory.supply import MISSING, Indices, Supply
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES

_COPY, _ZEROPAGE, _WAKE = 0xC028AA03, 0xC020AA04, 0x8010AA02
FILL_PAGES = 128
"""The most that is placed in one go: a fault that comes meanwhile waits for it, some 0.1 ms."""
FAULT_AROUND_PAGES = 16
FOLLOW_PAGES = 512
"""So far after a fault the fill goes on there: programs read forwards."""


class LazySpace:
    """Page number `_pages[i]` (ascending) is number `_of[i]` of the supply, which a fork shares; `_there[i]` once there
    is nothing more to be done about it. Everything but the fill is to be called with `lock` held.

    Until the memory is `laid_out`, a copy may be refused because the mapping is still to come: nothing counts as there.
    """

    def __init__(self, uffd: int, supply: Supply, store_address: int) -> None:
        self.uffd = uffd
        self.supply = supply
        self._pages, self._of = supply.pages, np.arange(len(supply.pages))
        self._there = np.zeros(len(supply.pages), bool)
        self._store = store_address
        self._waiting: set[int] = set()
        self._follow = self._follow_left = 0
        self.lock = threading.Lock()
        self.wanted = False
        self.laid_out = False
        self.faults = 0
        self.gone = False

    def _copy(self, page: int, slot: int, count: int) -> int:
        """UFFDIO_COPY of `count` pages; returns the pages that are done with, fewer when the kernel asks to wait."""
        done, step = 0, count
        while done < count:
            step = min(step, count - done)
            argument = bytearray(struct.pack(
                "<QQQQq", (page + done) * PAGE_BYTES, self._store + (slot + done) * PAGE_BYTES,
                step * PAGE_BYTES, 0, 0,
            ))  # fmt: skip
            try:
                fcntl.ioctl(self.uffd, _COPY, argument)
                done, step = done + step, count
            except OSError as error:
                copied = max(0, int(struct.unpack_from("<q", argument, 32)[0])) // PAGE_BYTES
                done += copied
                if copied:
                    continue
                if error.errno == errno.ENOENT and step > 1:
                    step //= 2  # one call must stay within one mapping, and two may touch
                elif error.errno in (errno.EEXIST, errno.ENOENT):  # there already, or unmapped meanwhile
                    done += 1
                elif error.errno == errno.ESRCH:
                    self.gone = True
                    return count
                else:  # EAGAIN: an event waits to be read before the layout is certain again
                    return done
        return done

    def _wake(self, page: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.uffd, _WAKE, struct.pack("<QQ", page * PAGE_BYTES, PAGE_BYTES))

    def _run(self, at: int, limit: int) -> int:
        """How many pages from index `at` on lie together on both sides and are still lacking."""
        window = slice(at, at + limit)
        there, slots = self._there[window], self.supply.slots[self._of[window]]
        if len(there) == 0 or there[0] or slots[0] == MISSING:
            return 0
        ends = (np.diff(self._pages[window].astype(np.int64)) != 1) | (np.diff(slots) != 1) | there[1:]
        return int(np.argmax(ends)) + 1 if ends.any() else len(slots)

    def _place(self, at: int, count: int) -> int:
        """Place `count` pages that lie together; returns how many are done with."""
        done = self._copy(int(self._pages[at]), int(self.supply.slots[self._of[at]]), count)
        if self.laid_out:
            self._there[at : at + done] = True
        return done

    # --- faults -------------------------------------------------------------------------------------------
    def serve_fault(self, address: int) -> None:
        """Place the page at `address` (and its close followers); a page that never existed becomes zeros."""
        page = address // PAGE_BYTES
        self.faults += 1
        at = self._index(page)
        if at is not None:
            self._place_around(page, at)
            return
        argument = bytearray(struct.pack("<QQQq", page * PAGE_BYTES, PAGE_BYTES, 0, 0))
        try:
            fcntl.ioctl(self.uffd, _ZEROPAGE, argument)
        except OSError as error:
            if error.errno == errno.ESRCH:
                self.gone = True
            self._wake(page)

    def serve_waiting(self) -> None:
        """Pages have come: place those that somebody waits for."""
        waiting, self._waiting = self._waiting, set()
        for page in waiting:
            at = self._index(page)
            if at is not None:
                self._place_around(page, at)
            else:
                self._wake(page)  # moved or unmapped meanwhile: it faults anew, wherever it is now

    def _index(self, page: int) -> int | None:
        at = int(np.searchsorted(self._pages, np.uint64(page)))
        return at if at < len(self._pages) and int(self._pages[at]) == page else None

    def _place_around(self, page: int, at: int) -> None:
        """Place the page at index `at` and what follows it closely; one that has not come yet is asked for."""
        if self.supply.slots[self._of[at]] == MISSING:
            self._waiting.add(page)
            self.supply.request(int(self._of[at]))
            return
        done = self._place(at, self._run(at, FAULT_AROUND_PAGES) or 1)
        self._follow, self._follow_left = at + done, FOLLOW_PAGES
        self._wake(page)  # after EAGAIN it faults anew, when the event has been read

    # --- the fill -----------------------------------------------------------------------------------------
    def fill(self, stop: threading.Event) -> int:
        """Place everything that is still lacking, waiting for what is on its way; returns the bytes placed. Gives way
        to faults and events. Raises StepFailed when the rest will never come."""
        placed = 0
        self.laid_out = True
        while not stop.is_set() and not self.gone:
            self.supply.changed.clear()
            with self.lock:
                layout, runs = self._pages, self._runs_to_fill()
                whole = bool(self._there.all())
            if whole:
                break
            if runs:
                placed += self._fill_runs(runs, layout, stop)
            elif self.supply.lost:
                raise StepFailed(f"{self.supply.missing()} pages of the service never came")
            else:
                self.supply.changed.wait(0.05)
        return placed * PAGE_BYTES

    def _runs_to_fill(self) -> list[tuple[int, int]]:
        """(index, pages) of what is lacking and has come, in the order in which it is to be placed."""
        lacking = ~self._there & (self.supply.slots[self._of] != MISSING)
        first = self.supply.first[self._of]
        return self._runs(np.flatnonzero(lacking & first)) + self._runs(np.flatnonzero(lacking & ~first))

    def _runs(self, indices: Indices) -> list[tuple[int, int]]:
        """Cut ascending `indices` where pages or slots do not lie together, and to `FILL_PAGES` each."""
        if len(indices) == 0:
            return []
        pages, slots = self._pages[indices].astype(np.int64), self.supply.slots[self._of[indices]]
        cut = np.flatnonzero((np.diff(pages) != 1) | (np.diff(slots) != 1)) + 1
        starts = np.concatenate(([0], cut))
        counts = np.diff(np.concatenate((starts, [len(indices)])))
        runs = []
        for start, count in zip(indices[starts].tolist(), counts.tolist(), strict=True):
            runs += [(start + at, min(FILL_PAGES, count - at)) for at in range(0, count, FILL_PAGES)]
        return runs

    def _fill_runs(self, runs: list[tuple[int, int]], layout: Pages, stop: threading.Event) -> int:
        """Place the runs, unless an event changes the `layout` that they are made of. Returns the pages placed."""
        placed = turn = 0
        while turn < len(runs) and not stop.is_set() and not self.gone:
            while self.wanted:
                time.sleep(0.00005)  # a lock alone is not fair: the fill would take it again and again
            with self.lock:
                if layout is not self._pages:
                    break
                left = FILL_PAGES
                while left > 0 and turn < len(runs) and not self.wanted:
                    done = self._follow_fault()
                    if not done:
                        at, count = runs[turn]
                        done, finished = self._place_lacking(at, count)
                        turn += finished
                        if not finished:
                            break
                    placed += done
                    left -= done or 1
                else:
                    continue
            time.sleep(0.0002)
        return placed

    def _place_lacking(self, at: int, count: int) -> tuple[int, bool]:
        """Of a run what is still lacking; returns the pages placed and whether the kernel took them all."""
        placed, end = 0, at + count
        while at < end:
            if not self._there[at:end].any():
                done = self._place(at, end - at)
                return placed + done, at + done == end
            run = min(self._run(at, end - at), end - at)
            if run:
                done = self._place(at, run)
                placed += done
                if done < run:
                    return placed, False
            at += run or 1
        return placed, True

    def _follow_fault(self) -> int:
        """Where the program waited last, its next pages. Returns how many were placed."""
        if self._follow_left <= 0:
            return 0
        run = self._run(self._follow, min(self._follow_left, FILL_PAGES))
        done = self._place(self._follow, run) if run else 0
        self._follow += done
        self._follow_left = self._follow_left - done if done else 0
        return done

    def arrived(self, indices: Indices) -> None:
        """These of the supply have come: they were written last, so they go where they belong at once."""
        if not self.laid_out:
            self.serve_waiting()
            return
        if len(self._of) != len(self.supply.pages) or not np.array_equal(self._of[indices], indices):
            known = np.zeros(len(self.supply.pages), bool)
            known[indices] = True
            indices = np.flatnonzero(known[self._of])
        for at, count in self._runs(indices):
            self._place_lacking(at, count)  # what the kernel does not take now is left to the fill
        self.serve_waiting()

    # --- events -------------------------------------------------------------------------------------------
    def moved(self, source: int, target: int, length: int) -> None:
        """mremap: what lay at [source, source+length) is now wanted at `target`."""
        first, last = source // PAGE_BYTES, (source + length) // PAGE_BYTES
        inside = (self._pages >= first) & (self._pages < last)
        shift = target // PAGE_BYTES - first
        pages = self._pages.astype(np.int64)
        pages[inside] += shift
        order = np.argsort(pages, kind="stable")
        self._relay(pages[order].astype(np.uint64), self._of[order], self._there[order])

    def dropped(self, start: int, end: int) -> None:
        """Unmapped or given back: the range reads as zeros from now on."""
        keep = (self._pages < start // PAGE_BYTES) | (self._pages >= end // PAGE_BYTES)
        self._relay(self._pages[keep], self._of[keep], self._there[keep])

    def _relay(self, pages: Pages, of: Indices, there: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        self._pages, self._of, self._there = pages, of, there
        self._follow_left = 0

    def forked(self, uffd: int) -> LazySpace:
        """A child lacks what its parent lacks. What the parent has already is tried again: better twice than never."""
        child = LazySpace(uffd, self.supply, self._store)
        child._relay(self._pages, self._of, np.zeros(len(self._of), bool))
        return child
