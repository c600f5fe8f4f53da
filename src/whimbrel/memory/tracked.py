"""One process under write tracking.

What can change between two scans, and why no write is missed: every mapping that was not there when we
registered it (new, moved, inherited by fork, replaced at the same address, of a new program after exec) is
by the kernel's doing not registered, so its populated pages are reported whole; a registered mapping that
grows, shrinks or loses pages has no write-protect mark on what is populated anew. Marks that are left from an
earlier registration are forgotten with the next one. So the state that counts is the kernel's alone, and a list of
mappings that is out of date when it is used does no harm.
"""

from __future__ import annotations

import errno
import math
import os
import time
from contextlib import suppress

from whimbrel.memory import uffd
from whimbrel.memory.guardian import AttachError, Guardian
from whimbrel.memory.processes import Status, read_status
from whimbrel.memory.ranges import EMPTY, Ranges, as_ranges, gaps, intersect, joined, touched, union
from whimbrel.memory.vmas import Private, Stretches, open_proc, private_mappings

# Mappings nearer to each other than this are scanned in one call; the call walks what lies between, too.
_RUN_GAP_BYTES = 64 << 20
_FILE_RUN_GAP_BYTES = 1 << 20

# How long to wait before the next try to attach, by errno; other failures are tried again at the next scan.
_RETRY_AFTER_S = {errno.ETIMEDOUT: 2.0, errno.ENOTSUP: math.inf, errno.ENOSYS: math.inf, errno.EMFILE: 1.0}


def open_pagemap(directory: int) -> int:
    """Of the process behind an open /proc/PID. Anew each time: an open page map stays with the address space it was
    opened for, also after exec. Raises ProcessLookupError."""
    try:
        return os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, "the process is gone") from error


def populated(directory: int, private: Private, scanner: uffd.Scanner) -> Ranges:
    """All pages that exist in these mappings, tracked or not; of a process that stands still."""
    pagemap = open_pagemap(directory)
    try:
        parts = [scanner.present(pagemap, *row, files=False) for row in private.large.tolist()]
        for run in joined(private.rows, _RUN_GAP_BYTES):
            parts += [scanner.present(pagemap, *rest) for rest in gaps(*run, private.large)]
    finally:
        os.close(pagemap)
    return intersect(union(*parts), private.rows)


def has_guards(directory: int, scanner: uffd.Scanner) -> bool:
    """Whether the process behind an open /proc/PID has guard regions."""
    pagemap = open_pagemap(directory)
    try:
        return scanner.any_guard(pagemap)
    finally:
        os.close(pagemap)


class TrackedProcess:
    """A process, held by an open /proc/PID so that a reused number cannot be mistaken for it.

    `problem` says in one line why writes cannot be tracked at present; every scan then returns all populated
    pages. All methods raise ProcessLookupError when the process is gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.problem: str | None = None
        self._uffd = -1
        self._retry_s = 0.0
        self._report_all = False
        self._directory = open_proc(pid)
        try:
            self.ns_pids = self.status().ns_pids
        except BaseException:
            os.close(self._directory)
            raise

    @property
    def attached(self) -> bool:
        return self._uffd >= 0

    def status(self) -> Status:
        return read_status(self._directory)

    def forget_last_scan(self) -> None:
        """The result of the last scan was lost on its way: the next one returns everything."""
        self._report_all = True

    def scan(self, scanner: uffd.Scanner, guardian: Guardian | None) -> Ranges:
        """Pages written since the last scan, or never reported; re-armed in the same step. Without a guardian nothing
        is attached: what is not tracked is returned whole."""
        private = self._private()
        keep = private.rows
        if not len(keep):
            return EMPTY
        pagemap = open_pagemap(self._directory)
        report_all, self._report_all = self._report_all, True  # until this scan is whole
        try:
            runs = joined(keep, _RUN_GAP_BYTES)
            parts = []
            if self.attached:
                # Not cut down to `keep`: whatever was re-armed here must be reported, or it would be lost.
                parts += self._written(private, runs, pagemap, scanner, rearm=True)
                parts += self._dropped(private, pagemap, scanner)
            fresh = intersect(union(*(scanner.unregistered(pagemap, *run) for run in runs)), keep)
            if guardian is None:
                parts.append(fresh)
            elif len(fresh):
                parts.append(self._take_in(keep[touched(keep, fresh)], fresh, runs, pagemap, scanner, guardian))
            if report_all:
                parts.append(intersect(union(*(scanner.present(pagemap, *run) for run in runs)), keep))
        finally:
            os.close(pagemap)
        self._report_all = False
        return union(*parts)

    def scan_stopped(self, scanner: uffd.Scanner, *, rearm: bool) -> Ranges:
        """The same for a process that stands still, whoever stopped it: attaches nothing, and re-arms only if told, so
        that a second look finds what its stopper wrote."""
        private = self._private()
        keep = private.rows
        if not len(keep):
            return EMPTY
        pagemap = open_pagemap(self._directory)
        try:
            parts = self._dropped(private, pagemap, scanner)
            runs = joined(keep, _RUN_GAP_BYTES)
            if self._report_all:
                parts += [scanner.present(pagemap, *run) for run in runs]
            else:
                # Two looks, because a mark left over in a moved mapping means nothing (Linux before 6.14
                # keeps it).
                parts += self._written(private, runs, pagemap, scanner, rearm=rearm)
                parts += [scanner.unregistered(pagemap, *run) for run in runs]
        finally:
            os.close(pagemap)
        return intersect(union(*parts), keep)

    def there_still(self, ranges: Ranges, scanner: uffd.Scanner) -> Ranges:
        """Those of these pages that exist, of a process that stands still."""
        return intersect(ranges, populated(self._directory, self._private(), scanner))

    def close(self) -> None:
        """Ends the tracking; the process runs on, its mappings are as before. Safe to repeat."""
        self._detach()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _private(self) -> Private:
        return Private(EMPTY, EMPTY, EMPTY) if self.status().dead else private_mappings(self._directory)

    def _written(
        self,
        private: Private,
        runs: list[tuple[int, int]],
        pagemap: int,
        scanner: uffd.Scanner,
        *,
        rearm: bool,
    ) -> list[Ranges]:
        parts = [
            scanner.written(pagemap, start, end, rearm=rearm, files=False) for start, end in private.large.tolist()
        ]
        for run in runs:
            parts += [scanner.written(pagemap, *rest, rearm=rearm) for rest in gaps(*run, private.large)]
        return parts

    def _dropped(self, private: Private, pagemap: int, scanner: uffd.Scanner) -> list[Ranges]:
        runs = joined(private.of_files, _FILE_RUN_GAP_BYTES)
        found = union(*(scanner.dropped(pagemap, *run) for run in runs))
        return [intersect(found, private.of_files)]

    def _take_in(
        self,
        mappings: Ranges,
        fresh: Ranges,
        runs: list[tuple[int, int]],
        pagemap: int,
        scanner: uffd.Scanner,
        guardian: Guardian,
    ) -> Ranges:
        """Register mappings that are not; returns all their populated pages. `fresh`: those, as just seen;
        `runs`: everything that is scanned."""
        had_one = self.attached
        if not had_one and not self._attach(guardian):
            return fresh
        parts, left = self._register(mappings, pagemap, scanner)
        if had_one and len(left) == len(mappings) and not any(scanner.any_registered(pagemap, *run) for run in runs):
            # Nothing here is ours: the userfaultfd is of the memory from before an exec.
            self._detach()
            if self._attach(guardian):
                parts, left = self._register(mappings, pagemap, scanner)
        # What could not be registered (changed under our hands) is reported as it is now, and again next
        # time.
        return union(*parts, *(scanner.present(pagemap, start, end) for start, end in left.tolist()))

    def _register(self, mappings: Ranges, pagemap: int, scanner: uffd.Scanner) -> tuple[list[Ranges], Ranges]:
        """(all populated pages of what is now registered, the mappings that could not be)."""
        self.problem = None
        parts, refused = [], []
        stretches = Stretches(self._directory)
        done: set[tuple[int, int]] = set()
        for start, end in mappings.tolist():
            try:
                stretch = stretches.around(start, end)
                if stretch not in done:
                    with suppress(OSError):
                        uffd.register(self._uffd, *stretch)
                        done.add(stretch)
                if stretch not in done:  # something in it is not ours to have: at least this mapping then
                    uffd.register(self._uffd, start, end)
                uffd.forget_marks(self._uffd, start, end)
                parts.append(scanner.populated(pagemap, start, end))
            except OSError as error:
                refused.append((start, end))
                if error.errno == errno.EBUSY:
                    self.problem = "another userfaultfd holds some of its memory: end the program that made it"
        return parts, as_ranges(refused)

    def _attach(self, guardian: Guardian) -> bool:
        if time.monotonic() < self._retry_s:
            return False
        try:
            self._uffd, _ = guardian.userfaultfd_of(self.pid)
            uffd.enable(self._uffd)
        except AttachError as error:
            self._retry_s = time.monotonic() + _RETRY_AFTER_S.get(error.number, 0.0)
            self.problem = str(error)
            return False
        except OSError as error:
            self._detach()
            self.problem = f"userfaultfd refused: {error.strerror}"
            return False
        self.problem = None
        return True

    def _detach(self) -> None:
        if self._uffd >= 0:
            os.close(self._uffd)
            self._uffd = -1
