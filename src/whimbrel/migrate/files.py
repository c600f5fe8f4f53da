"""The files of a service, as its source sees them: passes ahead while it runs, and what is left in the freeze.

The work is done by a process of its own (`sendfiles`); here it is started, told what to do, and listened to.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from whimbrel.migrate.dump import Source
from whimbrel.migrate.job import Migration
from whimbrel.migrate.nursery import Child, Nursery
from whimbrel.migrate.preflight import NAMELESS_LIMIT_BYTES, FileRoom
from whimbrel.migrate.sendfiles import CarriedFolder, Command, SendOrder
from whimbrel.migrate.settling import Settling
from whimbrel.model.errors import StepFailed, error_from_wire
from whimbrel.model.migration import Progress
from whimbrel.model.units import format_bytes
from whimbrel.storage.listing import allocated_bytes
from whimbrel.storage.mounts import mount_of
from whimbrel.storage.openfiles import nameless_files
from whimbrel.storage.shared.visible import Seen

SMALL_BYTES = 1 << 20
MOST_PASSES_AHEAD = 6
MIN_SHRINK = 0.9
END_S = 2.0
Pids = Callable[[], Iterable[int]]


def folders_of(source: Source) -> list[CarriedFolder]:
    """In the order that both sides agree on: the departure's, which is that of the landing's targets."""
    return [
        CarriedFolder(root.path, root.inside.lstrip("/"), base=root.base, writer=source.pid)
        for root in source.departure.files
    ]


def files_of(job: Migration) -> FileSync:
    """Call it in the event loop's thread: that is where progress is told."""
    loop = asyncio.get_running_loop()

    def tell(detail: str, fraction: float) -> None:
        news = Progress(migration=job.request.id, phase="rounds", detail=detail, fraction=fraction)
        loop.call_soon_threadsafe(job.emit, news)

    source = job.source
    settling = Settling(source.departure.rootfs, source.cgroup.pids) if source.departure.shared else None
    return FileSync(folders_of(source), source.cgroup.pids, tell, job.node.nursery, settling)


def room_for_files(source: Source, *, with_image: bool, exact: bool) -> FileRoom:
    """What the files take, and the image if it must cross too. Blocks, about 2 us a file; not `exact`: at most so much,
    as all that the file systems hold where they lie, at once."""
    disk_bytes = memory_bytes = 0
    file_systems: set[int] = set()
    for carried in folders_of(source):
        if exact:
            size = allocated_bytes(Path(carried.folder))
            if carried.base:
                size = max(0, size - allocated_bytes(Path(carried.base)))
        else:
            device = os.stat(carried.folder).st_dev
            size = 0 if device in file_systems else shutil.disk_usage(carried.folder).used
            file_systems.add(device)
        if mount_of(Path(carried.folder).resolve()).kind == "tmpfs":
            memory_bytes += size
        else:
            disk_bytes += size
    nameless = nameless_files(source.cgroup.pids())
    return FileRoom(
        disk_bytes=disk_bytes,
        memory_bytes=memory_bytes,
        image_bytes=source.image.size_bytes if with_image and source.image is not None else 0,
        nameless_bytes=sum(file.allocated_bytes for file in nameless),
        too_large=next((file for file in nameless if file.allocated_bytes > NAMELESS_LIMIT_BYTES), None),
    )


class FileSync:
    """Blocks, one call at a time; `close` may be called from any thread and ends a call that is under way.

    `tell` hears how far a long pass is, as one line and a fraction. `settling`: for a root on shared storage, whose
    `written` files the destination is to wait for.
    """

    def __init__(
        self,
        folders: Sequence[CarriedFolder],
        pids: Pids,
        tell: Callable[[str, float], object],
        nursery: Nursery,
        settling: Settling | None = None,
    ) -> None:
        self._folders = tuple(folders)
        self._pids = pids
        self._tell = tell
        self._nursery = nursery
        self._settling = settling
        self.written: tuple[Seen, ...] = ()
        self._process: Child | None = None
        self._orders: BinaryIO | None = None
        self._events: BinaryIO | None = None
        self._last_begun = False
        self.passes = 0
        self.sent_bytes = 0
        self.last_pass_bytes = 0

    def start(self, host: str, port: int, token: str, bandwidth_bps: float = 0.0) -> None:
        """Start the process and connect it to the destination. Raises StepFailed, Unreachable."""
        order = SendOrder(host=host, port=port, token=token, folders=self._folders, bandwidth_bps=bandwidth_bps)
        process = self._nursery.fork("sendfiles")
        self._orders, self._events = os.fdopen(process.stdin, "wb"), os.fdopen(process.stdout, "rb")
        process.stdin = process.stdout = -1
        self._process = process
        self._write(msgspec.json.encode(order))
        if self._settling is not None:
            self._settling.prepare()
        self._expect("ready")

    def ahead(self) -> int:
        """All files while the service runs, then what changed meanwhile, until that is little or shrinks no more.
        Returns the bytes that crossed."""
        total = sent = self.round()
        for _ in range(MOST_PASSES_AHEAD - 1):
            if sent <= SMALL_BYTES:
                break
            before, sent = sent, self.round()
            total += sent
            if sent >= MIN_SHRINK * before:
                break
        return total

    def round(self) -> int:
        """What changed since the last pass; it has arrived, and was checked, when this returns. Returns its bytes."""
        self._command("pass")
        return self._count(self._expect("passed"))

    def begin_last(self) -> None:
        """The service stands still: what changed since the last pass begins to cross; `last` waits for it."""
        self._command("last")
        if self._settling is not None:
            self._settling.begin()
        self._last_begun = True

    def last(self) -> int:
        """CRIU's dump is written: the rest crosses. It is on its way when this returns, not yet checked."""
        if not self._last_begun:
            self.begin_last()
        sent = self._count(self._expect("sent"))
        self._command("names")
        sent += self._count(self._expect("sent"))
        if self._settling is not None:
            self.written = self._settling.written()
        return sent

    def close(self) -> None:
        if self._settling is not None:
            self._settling.close()
        process = self._process
        if process is None:
            return
        process.kill()
        process.ended(END_S)  # if not, it hangs in the kernel, on a disk say: let it
        process.close()

    def _command(self, what: str) -> None:
        self._write(msgspec.json.encode(Command(what=what, pids=tuple(self._pids()))))

    def _write(self, line: bytes) -> None:
        assert self._orders is not None
        try:
            self._orders.write(line + b"\n")
            self._orders.flush()
        except OSError as error:
            raise StepFailed("the process that sends the files ended") from error

    def _expect(self, wanted: str) -> dict[str, Any]:
        assert self._events is not None
        while line := self._events.readline():
            event: dict[str, Any] = msgspec.json.decode(line)
            if event["event"] == wanted:
                return event
            if event["event"] == "failed":
                raise error_from_wire(event["code"], event["error"])
            done, total = event["done_bytes"], event["total_bytes"]
            self._tell(f"files: {_of(done, total)}", done / total if total else 0.0)
        raise StepFailed("the process that sends the files ended")

    def _count(self, event: dict[str, Any]) -> int:
        self.passes = event["passes"]
        sent = int(event["sent_bytes"])
        self.sent_bytes += sent
        self.last_pass_bytes = sent
        return sent


def _of(done_bytes: int, total_bytes: int) -> str:
    """``120 of 590 MB``"""
    done, total = format_bytes(done_bytes).split(), format_bytes(total_bytes).split()
    return f"{done[0]} of {' '.join(total)}" if done[1] == total[1] else f"{' '.join(done)} of {' '.join(total)}"
