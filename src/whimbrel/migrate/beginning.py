"""CRIU's restore: how it begins, as soon as its images are there (up to its point ``setup-namespaces`` it looks neither
at pages nor at files, which may still come), and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from whimbrel.checkpoint import criu_pb2 as pb
from whimbrel.checkpoint.swrk import CriuWorker
from whimbrel.migrate.arrangement import Arrangement
from whimbrel.migrate.handover import LazyHandover
from whimbrel.migrate.pagechannel import RestoreStart
from whimbrel.model.errors import StepFailed

BEGUN = "setup-namespaces"
LET_RUN_S = 3.0
FAILED_S = 10.0
"""A CRIU that was killed has answered by then."""


class Beginning:
    """In a thread of its own, which begins at once. `root` is the container's, `stdio` what its standard streams
    become, `external` and `foreign` as in `runtime.moving.Landing`. `arrangement` is None where CRIU finds all pages
    in its files."""

    def __init__(
        self,
        criu: CriuWorker,
        start: RestoreStart,
        arrangement: Arrangement | None,
        *,
        images_fd: int,
        root: Path,
        stdio: Mapping[int, int],
        external: tuple[str, ...],
        foreign: bool,
    ) -> None:
        self.start, self.arrangement = start, arrangement
        self.handover: LazyHandover | None = None
        if arrangement is not None and start.lazy:
            self.handover = arrangement.listen(images_fd)
        opts = pb.Options(
            images_dir_fd=images_fd,
            tcp_established=True,
            file_locks=True,
            link_remap=True,
            manage_cgroups_mode=pb.CG_IGNORE,
            network_lock=pb.LOCK_SKIP,
            notify_scripts=True,
            log_level=1,
            log_file="restore.log",
            root=str(root),
            lazy_pages=start.lazy,
            external=external,
            rst_sibling=foreign,
        )
        for name, stream in start.stdio.items():
            if stream in stdio:
                opts.inherit_fd.add(key=name, fd=stdio[stream])
        self._criu = criu
        thread = ThreadPoolExecutor(1, "start-criu")
        self._begun: Future[None] = thread.submit(self._begin, opts)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Until CRIU has come to its point `BEGUN`. Raises StepFailed with its reason."""
        self._begun.result()

    def check(self) -> None:
        """Raises StepFailed when it has failed already."""
        if self._begun.done():
            self._begun.result()

    def end(self) -> None:
        """CRIU was interrupted: until it is not used here any more."""
        wait([self._begun], FAILED_S)

    def _begin(self, opts: pb.Options) -> None:
        self._criu.begin_restore(opts)
        self._criu.advance(BEGUN)


def let_run(criu: CriuWorker) -> None:
    """The end of a restore: CRIU lets go. Should it die just here, the kernel lets go in its place, at the same
    instruction. Should it hang, it is killed. Raises StepFailed when there is no service left."""
    hanging = threading.Timer(LET_RUN_S, criu.interrupt)
    hanging.start()
    try:
        criu.advance(None)
    except StepFailed:
        if not Path(f"/proc/{criu.restored_pid}/stat").exists():
            raise
    finally:
        hanging.cancel()
