"""What a service wrote to a root on shared storage: it does not cross, but the destination must see all of it.

In the freeze the source hands over what open and mapped files still hold, and tells size and time of each file that is
open for writing; the destination looks until it sees the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from whimbrel.storage.shared.helper import Helper
from whimbrel.storage.shared.place import await_visible
from whimbrel.storage.shared.visible import Seen

SETTLE_S = 5.0
VISIBLE_S = 2.0  # attribute caches that last longer are too long


class Settling:
    """The source's side. Blocks, but for `begin`. A process that waits ready does the work: one that the storage keeps
    waiting is left behind."""

    def __init__(self, root: str, pids: Callable[[], Iterable[int]]) -> None:
        self._root, self._pids = root, pids
        self._helper = Helper(self._root)
        self._pool = ThreadPoolExecutor(1, "settling")
        self._settled: Future[tuple[Seen, ...]] | None = None

    def prepare(self) -> None:
        """Before the freeze: tidy up after a CRIU that was killed. Raises Unreachable."""
        self._helper.call("tidy", timeout_s=SETTLE_S, root=self._root, pids=list(self._pids()))

    def begin(self) -> None:
        """The service stands still."""
        self._settled = self._pool.submit(self._settle)

    def written(self) -> tuple[Seen, ...]:
        """What the destination must see. Raises Unreachable when the storage does not take it in time."""
        assert self._settled is not None
        return self._settled.result()

    def close(self) -> None:
        self._helper.close()
        self._pool.shutdown(wait=False)

    def _settle(self) -> tuple[Seen, ...]:
        answer = self._helper.call("settle", timeout_s=SETTLE_S, root=self._root, pids=list(self._pids()))
        return tuple((path, size, mtime_ns) for path, size, mtime_ns in answer)


class Appearing:
    """The destination's side: `root` is the same storage, seen from here."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._helper = Helper(root)

    def wait(self, written: Sequence[Seen]) -> None:
        """Raises StepFailed naming a file that does not look as it does at the source, Unreachable."""
        await_visible(self._helper, Path(self._root), list(written), timeout_s=VISIBLE_S)
        self._helper.close()
