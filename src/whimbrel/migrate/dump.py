"""The service as its source sees it, and CRIU's dump of it: begun ahead, stopped at CRIU's points, kept or undone.

Every function here blocks and is called in a thread; `run.py` tells the order.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.checkpoint.images import write_parent
from whimbrel.checkpoint.swrk import CriuWorker
from whimbrel.memory.processes import ns_pids_of
from whimbrel.memory.softdirty import clear_soft_dirty, has_soft_dirty
from whimbrel.migrate.preflight import NAMELESS_LIMIT_BYTES
from whimbrel.migrate.retelling import Retelling
from whimbrel.model.errors import StepFailed
from whimbrel.model.service import ServiceStatus
from whimbrel.network.tcp_repair import leave_repair_mode
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.moving import Departure
from whimbrel.storage.images import StoredImage

_CLOSE = struct.pack("<I4xQQQ", 0x1023, 0, 0, 0)  # of CRIU's page-server protocol, 4.2 and later
DUMP_PREFIX = "dump-"  # of the folder in which a service's images are written, below the node's run folder
_STDIO = re.compile(r"pipe:\[[0-9]+\]")


@dataclass(frozen=True)
class Source:
    """One running service as its node sees it; `run_dir` is on the node's tmpfs;
    `holes`: whether a dump here can leave pages out (see `checkpoint.kerndat`); `image`: what it was started from,
    None for another engine's container, and where no image crosses; `needed_file`: what its processes needed first when
    they came here, if they did (`memory.needed`)."""

    status: ServiceStatus
    departure: Departure
    run_dir: Path
    holes: bool
    image: StoredImage | None
    needed_file: Path

    @property
    def pid(self) -> int:
        return self.status.pid

    @property
    def cgroup(self) -> Cgroup:
        return Cgroup(self.departure.cgroup)


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
    """The dump of the service: started ahead, paused at CRIU's points, then committed or undone. It is a lazy one only
    where it can leave no holes."""

    def __init__(self, source: Source, work_dir: Path) -> None:
        self._source = source
        self.stage = work_dir
        self.images = work_dir / "images"
        self._parent = work_dir / "parent"
        self.images.mkdir(parents=True, exist_ok=True)  # the source opens a stage on shared storage first
        self._conf = work_dir / "rpc.conf"
        with contextlib.ExitStack() as undo:  # of what was made, should the rest fail
            undo.callback(shutil.rmtree, work_dir, ignore_errors=True)
            self._images_fd = os.open(self.images, os.O_RDONLY | os.O_DIRECTORY)
            undo.callback(os.close, self._images_fd)
            self._retelling = Retelling(source.run_dir, source.status.spec.name)
            undo.callback(self._retelling.close)
            self._page_server, theirs = socket.socketpair()
            undo.callback(self._page_server.close)
            with theirs:
                self._conf.write_text(f"ps-socket {theirs.fileno()}\n")
                self._criu = CriuWorker(
                    netns=Path(f"/proc/{source.pid}/ns/net"),
                    run_dir=source.run_dir,
                    pass_fds=[self._images_fd, theirs.fileno()],
                )
            undo.pop_all()
        self.frozen = False
        self._our_holes = False

    def warm_up(self) -> None:
        has_soft_dirty()  # found out once for each agent, and not in the freeze
        self._criu.warm_up()
        self._retelling.foresee(self._source.cgroup.pids())

    def begin(self, ns_pids: list[int], parent_image: str = "") -> None:
        """Up to the point where CRIU would freeze next. `parent_image`: the last of CRIU's own pre-dumps, if there are
        any; CRIU then writes the pages that changed since, and all of them are in files."""
        opts = pb.Options(
            images_dir_fd=self._images_fd,
            pid=self._source.pid,
            tcp_established=True,
            file_locks=True,
            link_remap=True,
            manage_cgroups_mode=pb.CG_IGNORE,
            network_lock=pb.LOCK_SKIP,
            lazy_pages=not parent_image and not self._source.holes,
            notify_scripts=True,
            log_level=1,
            log_file="dump.log",
            root=self._source.departure.rootfs,
            config_file=str(self._conf),
            ghost_limit=NAMELESS_LIMIT_BYTES,
            external=self._source.departure.external,
        )
        if parent_image:
            opts.track_mem = True
            opts.parent_img = parent_image
        elif self._source.holes:
            self._our_holes = True
            write_parent(self._parent, ns_pids)
            opts.track_mem = True
            opts.parent_img = "../parent"
        self._criu.begin_dump(opts)
        self._criu.advance("pre-dump")
        self._retelling.foresee(self._source.cgroup.pids())

    def freeze(self) -> None:
        """From here on no instruction of the service runs."""
        self.frozen = True
        self._criu.advance("query-ext-files")
        if self._our_holes:  # who was forked in the last moments is to have a parent's page map as well
            write_parent(self._parent, ns_pids_of(self._source.pid))
        told = self._retelling.tell(self._criu.pid, pages=self._our_holes)
        if self._our_holes:
            # or CRIU takes what was written for pages without a hole
            clear_soft_dirty(set(self._source.cgroup.pids()) - told)

    def finish(self) -> None:
        """Write all images."""
        with ThreadPoolExecutor(1, "present") as beside:
            present = beside.submit(self._retelling.present)
            self._criu.advance("post-dump")
            self._retelling.complete(self.images, present.result())
        # The latch: from here on the tree stays as the images say, even if CRIU or this agent dies.
        self._source.cgroup.freeze()
        if not self._criu.alive():
            raise StepFailed("CRIU died at the source while it held the service")

    def interrupt(self) -> None:
        """From another thread: make a step that is under way fail."""
        self._criu.interrupt()

    def undo(self) -> None:
        """Let the service run on where it stopped, with nothing of CRIU's left in it."""
        try:
            if self.frozen:
                self._criu.give_up()
                with contextlib.suppress(OSError):
                    self._page_server.send(_CLOSE)  # a lazy one ends, and thaws, when its page server is told to
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
        self._retelling.close()
        self._page_server.close()
        with contextlib.suppress(OSError):
            os.close(self._images_fd)
        shutil.rmtree(self.images.parent, ignore_errors=True)
