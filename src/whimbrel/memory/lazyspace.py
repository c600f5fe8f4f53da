"""What one restored address space still lacks, and how it is put there: by userfaultfd, page by page or run by run.

In this order: what the program waits for; *hot* pages, which came last or were written again and again while it was
watched; what lies around the place it waited at; *warm* pages, written once; and then the rest. Programs that read on
where they are get what lies around first. For one thread; each step is short, so that who waits meanwhile waits a
moment only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import struct
from collections import deque
from collections.abc import Callable

import numpy as np

from whimbrel.memory.store import Pages
from whimbrel.memory.supply import MISSING, Indices, Supply
from whimbrel.model.units import PAGE_BYTES

_COPY, _ZEROPAGE, _WAKE = 0xC028AA03, 0xC020AA04, 0x8010AA02
_COPY_ARGUMENTS, _COPIED = struct.Struct("<QQQQq"), struct.Struct("<q")
_ZEROS = struct.Struct("<QQQq")
GONE = -2
"""Instead of a slot: given back or unmapped by the program, or placed and not kept; if it is not there, it reads as
zeros."""
GIVEN_BACK_PAGES = 32
"""So many placed one after the other are not kept in the store: the kernel places the next ones in their memory, which
it need not get from the host of a virtual machine, and which the processor's cache still holds."""
AROUND_PAGES = 4
"""What a fault brings at once, aligned: each page makes it longer by 1 us."""
ZERO_PAGES = 512
"""So many pages of zeros a fault brings at once, if there are so many: they take no memory, and who goes on into
memory that was not there yet mostly goes on."""
FOLLOW_PAGES = 512
"""So far after a fault the fill goes on there: programs read forwards."""
BEFORE_PAGES = 32
"""So far before it too."""
NEAR_PAGES = 32
"""A program that faults so near to where the fill has come after its last fault reads on."""


class LazySpace:
    """Page number `_pages[i]` (ascending) is number `_of[i]` of the supply, which a fork shares, and lies in slot
    `_slots[i]` of the store unless that is `MISSING` or `GONE`. `_settled[i]` is 0 while the page is to be placed out
    of the store. `_cut[i]` is 1 where page i does not lie next to page i - 1, in the program or in the store.

    Both are bytes and not arrays of numpy: a fault looks at a few of them, and looking at few is what numpy is slow at.

    Until the memory is `laid_out`, a copy may be refused because the mapping is still to come; later it has gone.
    """

    def __init__(
        self, uffd: int, supply: Supply, store_address: int, give_back: Callable[[int, int], None] | None = None
    ) -> None:
        self.uffd = uffd
        self.supply = supply
        self._store = store_address
        self._give_back = give_back
        self._waiting: set[int] = set()
        self._hot: deque[tuple[int, int, int]] = deque()
        self._warm: deque[tuple[int, int, int]] = deque()
        self._layouts = 0
        self._argument = bytearray(_COPY_ARGUMENTS.size)
        self._written_noted = False
        self.laid_out = False
        self.faults = 0
        self.filled_pages = 0
        self.gone = False
        self._lay_out(supply.pages, np.arange(len(supply.pages)), supply.slots.copy())

    def _lay_out(self, pages: Pages, of: Indices, slots: Indices, settled: bytes = b"") -> None:
        self._pages, self._of, self._slots = pages, of, slots
        self._layouts += 1
        self._settled = bytearray(settled or (slots < 0).tobytes())
        cut = np.ones(len(pages), bool)
        cut[1:] = (np.diff(pages) != 1) | (np.diff(slots) != 1)
        self._cut = bytearray(cut.tobytes())
        self._next = 0
        self._spent_at = self._spent_slot = self._spent = 0
        self._follow = self._follow_end = 0
        self._reads_on = False

    # --- placing ------------------------------------------------------------------------------------------
    def _copy(self, page: int, slot: int, count: int) -> bool:
        """UFFDIO_COPY of `count` pages; returns whether all of them were copied just now."""
        _COPY_ARGUMENTS.pack_into(
            self._argument, 0, page * PAGE_BYTES, self._store + slot * PAGE_BYTES, count * PAGE_BYTES, 0, 0
        )
        try:
            fcntl.ioctl(self.uffd, _COPY, self._argument)
        except OSError:
            return False
        return True

    def _copy_in_parts(self, page: int, slot: int, count: int) -> int:
        """The same where some are there already, or not mapped; returns the pages that are done with, fewer when it is
        to be tried again."""
        done, step = 0, count
        while done < count:
            step = min(step, count - done)
            argument = bytearray(_COPY_ARGUMENTS.pack(
                (page + done) * PAGE_BYTES, self._store + (slot + done) * PAGE_BYTES, step * PAGE_BYTES, 0, 0
            ))  # fmt: skip
            try:
                fcntl.ioctl(self.uffd, _COPY, argument)
                done, step = done + step, count
            except OSError as error:
                copied = max(0, int(_COPIED.unpack_from(argument, 32)[0])) // PAGE_BYTES
                done += copied
                if copied:
                    continue
                if error.errno == errno.ENOENT and step > 1:
                    step //= 2  # one call must stay within one mapping, and two may touch
                elif error.errno == errno.ENOENT and not self.laid_out:
                    return done
                elif error.errno in (errno.EEXIST, errno.ENOENT):  # there already, or unmapped meanwhile
                    self._wake(page + done)  # as a copy would have done
                    done += 1
                elif error.errno == errno.ESRCH:
                    self.gone = True
                    return count
                else:  # EAGAIN: an event waits to be read before the layout is certain again
                    return done
        return done

    def _run(self, at: int, end: int) -> int:
        """How many pages from index `at` to before `end` lie together on both sides and are still lacking."""
        other = self._settled.find(1, at, end)
        if other == at:
            return 0
        cut = self._cut.find(1, at + 1, end if other < 0 else other)
        return (cut if cut >= 0 else min(end, len(self._cut)) if other < 0 else other) - at

    def _place(self, at: int, count: int) -> int:
        """Place `count` pages that lie together; returns how many are done with."""
        page, slot = int(self._pages[at]), int(self._slots[at])
        copied = self._copy(page, slot, count)
        done = count if copied else self._copy_in_parts(page, slot, count)
        self._settled[at : at + done] = b"\1" * done
        if copied and self._give_back is not None:
            self._spend(at, slot, count)
        return done

    def _spend(self, at: int, slot: int, count: int) -> None:
        """These are not needed any more in the store: give them back together with those before them, when they are
        many."""
        if (at, slot) != (self._spent_at + self._spent, self._spent_slot + self._spent):
            self._spent_at, self._spent_slot, self._spent = at, slot, 0
        self._spent += count
        if self._spent >= GIVEN_BACK_PAGES and self._give_back is not None:
            self._give_back(self._spent_slot, self._spent)
            self._slots[self._spent_at : at + count] = GONE
            self._spent_at, self._spent_slot, self._spent = at + count, slot + count, 0

    def alive(self) -> bool:
        """The kernel does not tell when the process has gone: a copy to where nothing can be finds out."""
        _COPY_ARGUMENTS.pack_into(self._argument, 0, PAGE_BYTES, self._store, PAGE_BYTES, 0, 0)
        try:
            fcntl.ioctl(self.uffd, _COPY, self._argument)
        except OSError as error:
            self.gone |= error.errno == errno.ESRCH
        return not self.gone

    def _wake(self, page: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.uffd, _WAKE, struct.pack("<QQ", page * PAGE_BYTES, PAGE_BYTES))

    def _index(self, page: int) -> int | None:
        at = int(self._pages.searchsorted(np.uint64(page)))
        return at if at < len(self._pages) and int(self._pages[at]) == page else None

    # --- faults -------------------------------------------------------------------------------------------
    def serve_fault(self, address: int) -> None:
        """Place the page at `address` (and its close neighbours); one that never existed becomes zeros, and so does
        what follows it."""
        page = address // PAGE_BYTES
        self.faults += 1
        at = self._index(page)
        if at is not None and self._slots[at] != GONE:
            self._place_around(page, at)
            return
        self._place_zeros(page, self._hole_end(page) - page)

    def serve_waiting(self) -> None:
        """Pages have come: place those that somebody waits for."""
        waiting, self._waiting = self._waiting, set()
        for page in waiting:
            at = self._index(page)
            if at is not None and self._slots[at] != GONE:
                self._place_around(page, at)
            else:
                self._wake(page)  # moved or unmapped meanwhile: it faults anew, wherever it is now

    def _hole_end(self, page: int) -> int:
        """The first page after `page`, within reach, that was there at the source or has yet to come; nothing from
        `page` up to it was, so that all of it reads as zeros."""
        reach = page + ZERO_PAGES
        low, high = self._pages.searchsorted(np.array((page, reach), np.uint64)).tolist()
        kept = np.flatnonzero(self._slots[low:high] != GONE)
        return int(self._pages[low + kept[0]]) if len(kept) else reach

    def _place_zeros(self, page: int, count: int) -> None:
        """The kernel's page of zeros at `page`, and from there on at up to `count` pages: as far as the mapping goes
        and nothing is there."""
        while True:
            argument = bytearray(_ZEROS.pack(page * PAGE_BYTES, count * PAGE_BYTES, 0, 0))
            try:
                fcntl.ioctl(self.uffd, _ZEROPAGE, argument)
                return
            except OSError as error:
                self.gone |= error.errno == errno.ESRCH
                if _ZEROS.unpack(argument)[3] > 0:
                    return  # met one that is there
                if error.errno != errno.ENOENT or count == 1:
                    break
                count //= 2  # beyond the end of the mapping
        self._wake(page)

    def _place_around(self, page: int, at: int) -> None:
        """Place the page at index `at` and what lies closely around; one that has not come yet is asked for."""
        if self._slots[at] == MISSING:
            self._waiting.add(page)
            self.supply.request(int(self._of[at]))
            return
        first = at
        low = max(0, at - page % AROUND_PAGES)
        if not self._settled[at] and low < at and self._run(low, at + 1) == at + 1 - low:
            first = low
        end = at + AROUND_PAGES - page % AROUND_PAGES
        if self._place(first, self._run(first, end) or 1) <= at - first:
            self._wake(page)  # after EAGAIN it faults anew, when the event has been read
        self._reads_on = self._follow <= at < self._follow + NEAR_PAGES
        self._follow, self._follow_end = max(0, at - BEFORE_PAGES), at + FOLLOW_PAGES

    # --- the fill -----------------------------------------------------------------------------------------
    def fill_read_on(self, limit: int) -> int:
        """`fill_around`, for a program that reads on where it is."""
        return self.fill_around(limit) if self._reads_on else -1

    def fill_hot(self, limit: int) -> int:
        """Place up to `limit` pages of what came last or was written again and again. Returns how many, -1 when there
        is none."""
        if not self._written_noted:
            self._written_noted = True
            again, once = self.supply.first
            self._hot.extend(self._runs(self._own(again)))
            self._warm.extend(self._runs(self._own(once)))
        return self._fill_next(self._hot, limit)

    def fill_around(self, limit: int) -> int:
        """The same for what lies around the last fault."""
        at = self._settled.find(0, self._follow, self._follow_end)
        if at < 0:
            self._follow = self._follow_end
            self._reads_on = False
            return -1
        done = self._fill(at, min(at + limit, self._follow_end))
        self._follow = at + done
        return done

    def fill_warm(self, limit: int) -> int:
        """The same for what was written once."""
        return self._fill_next(self._warm, limit)

    def _fill_next(self, runs: deque[tuple[int, int, int]], limit: int) -> int:
        """As many runs as that takes: hot pages lie in hundreds of them, a few pages each."""
        placed = 0
        while runs and placed < limit:
            layout, at, count = runs.popleft()
            if layout != self._layouts:
                continue  # it has changed: what is left of it comes with the rest
            end = at + count
            first = self._settled.find(0, at, end)
            if first < 0:
                continue
            done = self._fill(first, min(first + limit - placed, end))
            if first + done < end:
                runs.appendleft((layout, first + done, end - first - done))
            if not done:
                return placed
            placed += done
        return placed or -1

    def fill_rest(self, limit: int) -> int:
        """Place up to `limit` pages of what has come and is lacking. Returns how many, -1 when there is none."""
        at = self._settled.find(0, self._next)
        if at < 0:
            self._next = len(self._settled)
            return -1
        done = self._fill(at, at + limit)
        self._next = at + done
        return done

    def _fill(self, at: int, end: int) -> int:
        done = self._place(at, self._run(at, end))
        self.filled_pages += done
        return done

    def _runs(self, indices: Indices) -> list[tuple[int, int, int]]:
        """These ascending indices as (layout, first, how many)."""
        if not len(indices):
            return []
        cut = np.flatnonzero(np.diff(indices) != 1) + 1
        starts = np.concatenate(([0], cut))
        counts = np.diff(np.concatenate((starts, [len(indices)])))
        layouts = [self._layouts] * len(starts)
        return list(zip(layouts, indices[starts].tolist(), counts.tolist(), strict=True))

    def awaits(self) -> bool:
        """Is something on its way still?"""
        return not self.gone and bool((self._slots == MISSING).any())

    def arrived(self, indices: Indices) -> None:
        """These of the supply have come: they were written last, so they go where they belong at once."""
        self._come(self._own(indices))
        self.serve_waiting()

    def catch_up(self) -> None:
        """Take in what came between the making of this and now, while nobody told it."""
        lacking = np.flatnonzero(self._slots == MISSING)
        self._come(lacking[self.supply.slots[self._of[lacking]] != MISSING])

    def _come(self, indices: Indices) -> None:
        indices = indices[self._slots[indices] == MISSING]
        if len(indices):
            self._slots[indices] = self.supply.slots[self._of[indices]]
            np.frombuffer(self._settled, np.uint8)[indices] = 0
            edges = np.concatenate((indices, indices + 1))
            edges = edges[(edges > 0) & (edges < len(self._pages))]
            apart = self._pages[edges] - self._pages[edges - 1] != 1
            apart |= self._slots[edges] - self._slots[edges - 1] != 1
            np.frombuffer(self._cut, np.uint8)[edges] = apart
            self._next = min(self._next, int(indices[0]))
            self._hot.extend(self._runs(indices))

    def _own(self, indices: Indices) -> Indices:
        """Which ones these of the supply are here, ascending."""
        if len(self._of) == len(self.supply.pages) and np.array_equal(self._of[indices], indices):
            return indices
        known = np.zeros(len(self.supply.pages), bool)
        known[indices] = True
        return np.flatnonzero(known[self._of])

    # --- events -------------------------------------------------------------------------------------------
    def moved(self, source: int, target: int, length: int) -> None:
        """mremap: what lay at [source, source+length) is now wanted at `target`."""
        first, last = source // PAGE_BYTES, (source + length) // PAGE_BYTES
        here = self._slots != GONE
        pages = self._pages[here].astype(np.int64)
        pages[(pages >= first) & (pages < last)] += target // PAGE_BYTES - first
        order = np.argsort(pages, kind="stable")
        settled = np.frombuffer(self._settled, np.uint8)[here][order].tobytes()
        self._lay_out(pages[order].astype(np.uint64), self._of[here][order], self._slots[here][order], settled)

    def dropped(self, start: int, end: int) -> None:
        """Unmapped or given back: the range reads as zeros from now on."""
        low, high = self._pages.searchsorted(np.array((start, end), np.uint64) // np.uint64(PAGE_BYTES)).tolist()
        self._slots[low:high] = GONE
        self._settled[low:high] = b"\1" * (high - low)

    def forked(self, uffd: int) -> LazySpace:
        """A child lacks what its parent lacks, so that the store must keep it from now on. What the parent has already
        is tried again if it was kept: better twice than never. (What was not the child has: from a fork on until its
        event is read the kernel refuses all copies.)"""
        self._give_back = None
        child = LazySpace(uffd, self.supply, self._store)
        child.laid_out = self.laid_out
        child._lay_out(self._pages, self._of, self._slots.copy())
        return child
