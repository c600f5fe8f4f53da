"""What the source's node puts at a migration's disposal, and the steps that touch processes and files.

Every function here blocks and is called in a thread; `run.py` tells the order.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.checkpoint.images import write_parent
from whimbrel.checkpoint.swrk import CriuWorker
from whimbrel.memory.peek import read_pages_into
from whimbrel.memory.processes import ns_pid_of, tree_of
from whimbrel.memory.ranges import Ranges, as_ranges, split, total_bytes
from whimbrel.memory.tracker import ProcessPages, TreeTracker
from whimbrel.memory.vmas import read_vmas
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.model.errors import StepFailed
from whimbrel.model.service import ServiceStatus
from whimbrel.model.units import PAGE_BYTES
from whimbrel.network.tcp_repair import leave_repair_mode
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.moving import Departure, FileRoot
from whimbrel.storage.archive import pack
from whimbrel.storage.listing import Listing, batches, changed, differing, mapped_files, snapshot

_CLOSE = struct.pack("<I4xQQQ", 0x1023, 0, 0, 0)  # of CRIU's page-server protocol, 4.2 and later
BATCH_BYTES = 1 << 21
CLOCK_TICK_NS = 20_000_000
_STDIO = re.compile(r"pipe:\[[0-9]+\]")


@dataclass(frozen=True)
class Source:
    """One running service as its node sees it; `run_dir` is on the node's tmpfs;
    `holes`: whether a dump here can leave pages out (see `checkpoint.kerndat`)."""

    status: ServiceStatus
    departure: Departure
    run_dir: Path
    holes: bool

    @property
    def pid(self) -> int:
        return self.status.pid

    @property
    def cgroup(self) -> Cgroup:
        return Cgroup(self.departure.cgroup)


@dataclass
class FileSync:
    """The folders that follow the service: all of them once while it runs, then only what changed."""

    roots: tuple[FileRoot, ...]
    seen: list[Listing] = field(default_factory=list)
    _mapped: set[str] = field(default_factory=set)
    _racy: list[set[str]] = field(default_factory=list)

    def send(self, channel: PageChannel, pids: list[int]) -> int:
        """Send what changed since the last call (the first time: all). Returns the bytes of the archives."""
        total = 0
        first = not self.seen
        # A store into a shared mapping moves no time stamp, also when the mapping is gone by the end.
        self._mapped |= mapped_files(pids)
        for number, root in enumerate(self.roots):
            now_ns = time.time_ns()
            now = snapshot(Path(root.path))
            prefix = f"{root.inside.lstrip('/')}/" if root.inside else ""
            always = {path.removeprefix(prefix) for path in self._mapped if path.startswith(prefix)}
            if not first:
                always |= self._racy[number]
                changes = changed(self.seen[number], now, always=always)
            elif root.base:
                changes = differing(Path(root.base), Path(root.path), now)
            else:
                changes = changed({}, now)
            # Time stamps are a tick coarse: what was written just now may be written again within the same one.
            racy = {path for path, entry in now.items() if entry.ctime_ns > now_ns - CLOCK_TICK_NS}
            if first:
                self.seen.append(now)
                self._racy.append(racy)
            else:
                self.seen[number], self._racy[number] = now, racy
            for batch in batches(changes, now):
                archive = io.BytesIO()
                pack(Path(root.path), batch, archive)
                channel.send(Kind.FILES, number, archive.getbuffer())
                total += archive.tell()
        return total


class PageSender:
    """Reads pages out of the processes and sends them: one thread reads the next batch while this one sends.

    Batches are small enough to stay in the processor's cache between the two.
    """

    def __init__(self, channel: PageChannel) -> None:
        self._channel = channel
        self._buffers = [bytearray(BATCH_BYTES) for _ in range(2)]

    def send(self, dirty: list[ProcessPages]) -> int:
        """Send all pages; returns how many bytes of pages crossed. Pages that vanish meanwhile are left out."""
        sent = 0
        batches = _batches(dirty)
        first = next(batches, None)
        if first is None:
            return 0
        with ThreadPoolExecutor(1, "read-pages") as reader:
            turn = 0
            reading: Future[_Batch] | None = reader.submit(_read, first, self._buffers[0])
            while reading is not None:
                ready = reading.result()
                following = next(batches, None)
                turn = 1 - turn
                reading = None
                if following is not None:
                    reading = reader.submit(_read, following, self._buffers[turn])
                if len(ready.contents):
                    self._channel.send_pages(ready.ns_pid, ready.ranges, ready.contents)
                sent += len(ready.contents)
        return sent


@dataclass(frozen=True, eq=False)
class _Batch:
    ns_pid: int
    ranges: Ranges
    contents: memoryview


def _batches(dirty: list[ProcessPages]) -> Iterator[ProcessPages]:
    """The same pages in pieces of at most `BATCH_BYTES`."""
    for process in dirty:
        rows = split(process.ranges, BATCH_BYTES)
        ends = np.cumsum((rows[:, 1] - rows[:, 0]).astype(np.int64))
        first, done = 0, 0
        while first < len(rows):
            last = max(first + 1, int(np.searchsorted(ends, done + BATCH_BYTES, side="right")))
            yield ProcessPages(process.pid, process.ns_pid, rows[first:last])
            first, done = last, int(ends[last - 1])


def _read(piece: ProcessPages, buffer: bytearray) -> _Batch:
    view = memoryview(buffer)[: piece.size_bytes]
    ranges = piece.ranges
    missing = read_pages_into(piece.pid, ranges, view)
    if len(missing):
        ranges, view = _without(ranges, missing, view)
    return _Batch(piece.ns_pid, ranges, view)


def _without(ranges: Ranges, missing: Ranges, view: memoryview) -> tuple[Ranges, memoryview]:
    """Leave the missing pages out of a batch, page by page: rare, so plain."""
    gone = {page for start, end in missing.tolist() for page in range(start, end, PAGE_BYTES)}
    kept: list[tuple[int, int]] = []
    parts = bytearray()
    at = 0
    for start, end in ranges.tolist():
        for page in range(start, end, PAGE_BYTES):
            if page not in gone:
                kept.append((page, page + PAGE_BYTES))
                parts += view[at : at + PAGE_BYTES]
            at += PAGE_BYTES
    return np.array(kept, np.uint64).reshape(-1, 2), memoryview(parts)


def vdso_of(root_pid: int) -> list[ProcessPages]:
    """The code that the kernel maps into each process: no scan reports it as written, yet CRIU's page map lists it."""
    found = []
    for pid in tree_of(root_pid):
        with contextlib.suppress(ProcessLookupError):
            vdso = as_ranges((vma.start, vma.end) for vma in read_vmas(pid) if vma.name == "[vdso]")
            found.append(ProcessPages(pid, ns_pid_of(pid), vdso))
    return found


def pages_in(dirty: list[ProcessPages]) -> int:
    return sum(total_bytes(process.ranges) for process in dirty) // PAGE_BYTES


def stdio_pipes(pid: int) -> dict[str, int]:
    """CRIU's names of the pipes that the container's first process got as its standard streams."""
    names: dict[str, int] = {}
    for stream in (2, 1, 0):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{stream}")
            if _STDIO.fullmatch(target):
                names[target] = stream
    return names


class Dump:
    """The lazy dump of the service: started ahead, paused at CRIU's points, then committed or undone."""

    def __init__(self, source: Source, work_dir: Path) -> None:
        self._source = source
        self.images = work_dir / "images"
        self._parent = work_dir / "parent"
        shutil.rmtree(work_dir, ignore_errors=True)
        self.images.mkdir(parents=True)
        self._images_fd = os.open(self.images, os.O_RDONLY | os.O_DIRECTORY)
        ours, theirs = socket.socketpair()
        self._page_server = ours
        with theirs:
            (work_dir / "rpc.conf").write_text(f"ps-socket {theirs.fileno()}\n")
            self._criu = CriuWorker(
                netns=Path(f"/proc/{source.pid}/ns/net"),
                run_dir=source.run_dir,
                pass_fds=[self._images_fd, theirs.fileno()],
            )
        self._conf = work_dir / "rpc.conf"
        self.frozen = False

    @property
    def criu_pid(self) -> int:
        return self._criu.pid

    def warm_up(self) -> None:
        self._criu.warm_up()

    def begin(self, ns_pids: list[int]) -> None:
        """Up to the point where CRIU would freeze next."""
        opts = pb.Options(
            images_dir_fd=self._images_fd,
            pid=self._source.pid,
            tcp_established=True,
            file_locks=True,
            link_remap=True,
            manage_cgroups_mode=pb.CG_IGNORE,
            network_lock=pb.LOCK_SKIP,
            lazy_pages=True,
            notify_scripts=True,
            log_level=1,
            log_file="dump.log",
            root=self._source.departure.rootfs,
            config_file=str(self._conf),
            ghost_limit=1 << 28,
            external=self._source.departure.external,
        )
        if self._source.holes:
            write_parent(self._parent, ns_pids)
            opts.track_mem = True
            opts.parent_img = "../parent"
        self._criu.begin_dump(opts)
        self._criu.advance("pre-dump")

    def freeze(self) -> None:
        """From here on no instruction of the service runs."""
        self.frozen = True
        self._criu.advance("query-ext-files")

    def finish(self) -> bytes:
        """Write all images; returns them as the payload of an IMAGES frame."""
        self._criu.advance("post-dump")
        # The latch: from here on the tree stays as the images say, even if CRIU or this agent dies.
        self._source.cgroup.freeze()
        if not self._criu.alive():
            raise StepFailed("CRIU died at the source while it held the service")
        files = {
            path.name: path.read_bytes()
            for path in self.images.iterdir()
            if path.is_file() and not path.is_symlink() and path.suffix == ".img"
        }
        return msgspec.msgpack.encode(files)

    def interrupt(self) -> None:
        """From another thread: make a step that is under way fail."""
        self._criu.interrupt()

    def undo(self) -> None:
        """Let the service run on where it stopped, with nothing of CRIU's left in it."""
        try:
            if self.frozen:
                self._criu.give_up()
                with contextlib.suppress(OSError):
                    self._page_server.send(_CLOSE)  # a lazy dump ends, and thaws, when its page server is told to
                self._criu.wait(timeout_s=1.0)
            self.close()
        finally:
            try:
                leave_repair_mode(self._source.cgroup.pids())
            finally:
                self._source.cgroup.thaw()

    def close(self) -> None:
        """End CRIU, whatever it does. A tree that it holds runs on unless it was killed or its cgroup is frozen."""
        self._criu.kill()
        self._page_server.close()
        with contextlib.suppress(OSError):
            os.close(self._images_fd)
        shutil.rmtree(self.images.parent, ignore_errors=True)


__all__ = ["Dump", "FileSync", "PageSender", "Source", "StepFailed", "TreeTracker", "pages_in", "stdio_pipes"]
