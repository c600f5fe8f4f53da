"""What CRIU reads about the service's memory in the freeze: told by us, in a time that hardly grows with it.

CRIU reads /proc/PID/smaps for the flags of mappings, and /proc/PID/pagemap for which pages exist. For both the kernel
walks all memory: some 25 ms a GB each, all of it in the freeze. In CRIU's own mount namespace others stand in their
places, seen by this one CRIU alone:

- as *smaps* a text with the mappings as they are and their flags as foreseen (`memory.vmaflags`). Where these are not
  certain, it stays the kernel's.
- as *pagemap* that of a process that sleeps and has next to nothing. Which pages really exist is looked up beside
  CRIU's work, several times quicker (that scan need not look at each page's owner), and written into its page maps.
  A process with guard regions keeps its own: CRIU finds them there.

A process that came into being in the last moments, or for which any of this fails, is read from the kernel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from whimbrel.checkpoint import images as img
from whimbrel.checkpoint.swrk import launch_bound, prepare_run_dir
from whimbrel.memory.flagwatch import FlagWatch
from whimbrel.memory.processes import read_status
from whimbrel.memory.ranges import Ranges, intersect, subtract, union
from whimbrel.memory.softdirty import clear_soft_dirty
from whimbrel.memory.tracked import has_guards, populated
from whimbrel.memory.uffd import Scanner
from whimbrel.memory.vmaflags import FlagsBefore, flags_before, smaps_now
from whimbrel.memory.vmas import Private, open_proc, private_of, read_proc
from whimbrel.model.errors import Refused, StepFailed, WhimbrelError
from whimbrel.runtime.mounts import in_mounts_of
from whimbrel.storage.mounts import bind

_ELF_64_BIT = b"\x7fELF\x02"
_SLEEPER = ("sleep", "2147483647")
_FOLDER_PREFIX = "retold-"

log = structlog.get_logger()


@dataclass(frozen=True)
class _Told:
    """A process whose page map CRIU does not see. `directory`: its /proc/PID, open."""

    directory: int
    ns_pid: int
    private: Private


@dataclass(frozen=True)
class _Reading:
    """What follows from a process's mappings (`maps`, as the kernel tells them): `smaps` is None where it is not
    certain."""

    maps: bytes
    smaps: bytes | None
    private: Private


class Retelling:
    """For one dump. `name`: unique among the dumps of this node at a time. Construct it in a thread that lives as long
    as the agent (see `launch_bound`)."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._seen_at = Path("/run") / (_FOLDER_PREFIX + name)  # by CRIU: its /run is ours
        self._folder = prepare_run_dir(run_dir) / self._seen_at.name
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._sleeper = launch_bound(_SLEEPER, fds=(), stderr=2)
        self._scanner = Scanner()
        self._watch: FlagWatch | None = None
        self._before: dict[int, FlagsBefore] = {}
        self._plain: set[int] = set()  # without guard regions, which CRIU finds in the page map
        self._directories: dict[int, int] = {}
        self._told: dict[int, _Told] = {}
        self._foreseen: dict[int, _Reading] = {}

    def foresee(self, pids: Iterable[int]) -> None:
        """Of the running service, long before the freeze and again shortly before it, when only what has come since
        is read. It takes as long as the kernel's smaps, and as long the process cannot change its mappings."""
        clear_soft_dirty([self._sleeper.pid])  # or CRIU takes its few pages for such as were written
        pids = set(pids)
        try:
            if self._watch is not None and not self._watch.silent():
                self._forget()
            if self._watch is None:
                self._watch = FlagWatch(pids)
            else:
                self._watch.add(pids)
        except Refused as error:
            self._forget()
            log.info("CRIU reads of the memory in the freeze", why=str(error))
            return
        for pid in pids - self._directories.keys():
            with contextlib.suppress(OSError):
                directory = self._directories[pid] = open_proc(pid)
                if not _is_64_bit(directory):  # the kernel's tracepoints do not see the calls of others
                    continue
                if not has_guards(directory, self._scanner):
                    self._plain.add(pid)
                before = flags_before(read_proc(directory, "smaps"))
                if before is not None:
                    self._before[pid] = before
        for pid, directory in self._directories.items():
            with contextlib.suppress(OSError):  # most mappings are the same in the freeze: nothing to work out there
                self._foreseen[pid] = self._read(pid, read_proc(directory, "maps"))

    def _read(self, pid: int, maps: bytes) -> _Reading:
        seen = self._foreseen.get(pid)
        if seen is not None and seen.maps == maps:
            return seen
        before = self._before.get(pid)
        return _Reading(maps, None if before is None else smaps_now(maps, before), private_of(maps))

    def tell(self, worker_pid: int, *, pages: bool) -> set[int]:
        """The service stands still, CRIU has read nothing of its memory yet. `pages`: of its page maps too. Returns the
        processes of which CRIU finds no page that the page channel carries; see `complete`."""
        if self._watch is None or not self._watch.silent():
            log.info("CRIU reads of the memory in the freeze", why="the service gave some of it properties just now")
            return set()
        smaps: list[int] = []
        told: dict[int, _Told] = {}
        for pid, directory in self._directories.items():
            with contextlib.suppress(OSError):
                status = read_status(directory)
                if status.dead:
                    continue
                reading = self._read(pid, read_proc(directory, "maps"))
                if reading.smaps is not None and not status.locks_memory:
                    (self._folder / str(pid)).write_bytes(reading.smaps)
                    smaps.append(pid)
                if pages and pid in self._plain:
                    told[pid] = _Told(directory, status.ns_pids[-1], reading.private)
        try:
            flags, done = in_mounts_of(worker_pid, partial(self._put_in_place, smaps, list(told)))
        except WhimbrelError as error:
            log.warning("CRIU reads of the memory in the freeze", why=str(error))
            return set()
        self._told = {pid: told[pid] for pid in done}
        log.info("CRIU is told of the memory", processes=len(self._directories), pages=len(done), flags=len(flags))
        return set(done)

    def present(self) -> dict[int, Ranges]:
        """{pid in the container: the pages that exist} of those that were told; beside CRIU's work. Who was killed
        meanwhile is left out."""
        found: dict[int, Ranges] = {}
        for one in self._told.values():
            with contextlib.suppress(ProcessLookupError):
                found[one.ns_pid] = populated(one.directory, one.private, self._scanner)
        return found

    def complete(self, images: Path, present: dict[int, Ranges]) -> None:
        """CRIU has written its images: its page maps now tell of these pages too. Raises StepFailed."""
        written = set(img.pagemap_pids(images))
        for one in self._told.values():
            if one.ns_pid not in written:
                continue  # dead, it has no memory
            if one.ns_pid not in present:
                raise StepFailed(f"process {one.ns_pid} of the service was killed in the freeze")
            exists = intersect(present[one.ns_pid], img.private_ranges(images, one.ns_pid))
            theirs = img.read_pagemap(images, one.ns_pid)
            img.write_pagemap(images, with_holes(theirs, one.private.rows, exists))

    def close(self) -> None:
        """Safe to repeat."""
        self._forget()
        if self._sleeper.poll() is None:
            os.kill(self._sleeper.pid, 9)
            self._sleeper.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        while self._directories:
            os.close(self._directories.popitem()[1])
        self._before.clear()
        self._foreseen.clear()
        self._plain.clear()

    def _put_in_place(self, smaps: list[int], page_maps: list[int]) -> tuple[list[int], list[int]]:
        """In CRIU's mount namespace. Returns the processes for which it was done."""
        flags, pages = [], []
        for pid in smaps:
            with contextlib.suppress(WhimbrelError):
                bind(self._seen_at / str(pid), Path(f"/proc/{pid}/smaps"))
                flags.append(pid)
        for pid in page_maps:
            with contextlib.suppress(WhimbrelError):
                bind(Path(f"/proc/{self._sleeper.pid}/pagemap"), Path(f"/proc/{pid}/pagemap"))
                pages.append(pid)
        return flags, pages


def forget_all(run_dir: Path) -> None:
    """Free the memory of what an agent left that died; before any dump begins."""
    for left in prepare_run_dir(run_dir).glob(f"{_FOLDER_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def with_holes(pagemap: img.Pagemap, rows: Ranges, exists: Ranges) -> img.Pagemap:
    """The page map with a hole for each page that `exists`, in place of the holes that it had within `rows`."""
    holes = img.holes_of(pagemap)
    written = pagemap.ranges[~holes]
    ours = union(subtract(union(pagemap.ranges[holes]), rows), subtract(exists, union(written)))
    ranges = np.concatenate((written, ours))
    flags = np.concatenate((pagemap.flags[~holes], np.full(len(ours), img.PE_PARENT, np.uint32)))
    order = np.argsort(ranges[:, 0], kind="stable")
    return img.Pagemap(pagemap.ns_pid, pagemap.pages_id, ranges[order], flags[order])


def _is_64_bit(directory: int) -> bool:
    fd = os.open("exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, len(_ELF_64_BIT)) == _ELF_64_BIT
    finally:
        os.close(fd)
