"""The dirty pages of a whole container, round by round."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

from whimbrel.memory.guardian import Guardian
from whimbrel.memory.processes import same_memory, tree_of
from whimbrel.memory.ranges import Ranges, total_bytes
from whimbrel.memory.tracked import TrackedProcess
from whimbrel.memory.uffd import Scanner, missing_support
from whimbrel.model.errors import BadInput, Refused


@dataclass(frozen=True, slots=True, eq=False)
class ProcessPages:
    """Pages of one process. `ns_pid` is its pid as the tree's root sees it; `ranges`: uint64 (n, 2), rows
    ``[start, end)`` in bytes, page-aligned, sorted, disjoint."""

    pid: int
    ns_pid: int
    ranges: Ranges

    @property
    def size_bytes(self) -> int:
        return total_bytes(self.ranges)


class TreeTracker:
    """Tracks which pages a process and all its descendants write. A context manager; one thread at a time.

    Pages are those of `vmas.trackable` mappings, without holes, zero pages and guard regions: what CRIU
    lists as lazy. A page that is dropped (unmapped, MADV_DONTNEED) is not reported: whoever restores must
    go by CRIU's own page map, in which it is absent, and take the contents from what was reported last.

    One kind of write is not seen: into a page pinned for direct I/O (O_DIRECT) or RDMA before a scan and
    filled by the device after it.

    Raises Refused where the kernel lacks the means, BadInput when there is no such process.
    """

    def __init__(self, root_pid: int) -> None:
        lacking = missing_support()
        if lacking is not None:
            raise Refused(lacking)
        self._root_pid = root_pid
        self._scanner = Scanner()
        self._processes: dict[int, TrackedProcess] = {}
        try:
            root = self._processes[root_pid] = TrackedProcess(root_pid)
        except ProcessLookupError:
            raise BadInput(f"process {root_pid} does not exist: is the service running?") from None
        self._level = len(root.ns_pids) - 1
        self._guardian = Guardian()

    def __enter__(self) -> TreeTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def problems(self) -> dict[int, str]:
        """{pid: one line} for processes whose writes cannot be tracked now: every scan returns them whole."""
        return {pid: process.problem for pid, process in self._processes.items() if process.problem}

    def scan(self, *, final: bool = False, rearm: bool = False, attach: bool = True) -> list[ProcessPages]:
        """For each living process the pages written since the last scan (in the first: all), re-armed. Without `attach`
        a process or mapping that is not tracked yet is returned whole: to attach may take half a second.

        `final`: for a tree that stands still, whoever stopped it. Nothing is attached; a process or mapping that
        is not tracked yet is returned whole; re-armed only with `rearm`, when another look is to follow. An
        exception loses nothing: the next scan then returns everything.
        """
        tree = tree_of(self._root_pid)
        for pid in self._processes.keys() - tree.keys():
            self._processes.pop(pid).close()
        results = []
        try:
            for pid, parent in tree.items():
                with suppress(ProcessLookupError):
                    pages = self._scan_one(pid, parent, final, rearm, attach)
                    if pages is not None:
                        results.append(pages)
        except BaseException:
            for process in self._processes.values():
                process.forget_last_scan()
            raise
        return results

    def there_still(self, pages: list[ProcessPages]) -> list[ProcessPages]:
        """Those of these pages that exist, of a tree that stands still."""
        results = []
        for part in pages:
            process = self._processes.get(part.pid)
            with suppress(ProcessLookupError):
                if process is not None and len(part.ranges):
                    results.append(replace(part, ranges=process.there_still(part.ranges, self._scanner)))
        return results

    def written_bytes(self) -> int:
        """How much the next scan would find now, of a tree that runs: nothing is attached or re-armed by this look."""
        return sum(pages.size_bytes for pages in self.scan(final=True))

    def close(self) -> None:
        """Ends the tracking; the processes run on untouched. Safe to repeat."""
        while self._processes:
            self._processes.popitem()[1].close()
        self._guardian.close()

    def _scan_one(self, pid: int, parent: int, final: bool, rearm: bool, attach: bool) -> ProcessPages | None:
        for _ in range(2):
            process = self._processes.get(pid)
            if process is None:
                # Between vfork and exec the child writes in its parent's memory, and that is tracked already.
                if parent and same_memory(pid, parent):
                    return None
                process = self._processes[pid] = TrackedProcess(pid)
            try:
                ranges = (
                    process.scan_stopped(self._scanner, rearm=rearm)
                    if final
                    else process.scan(self._scanner, self._guardian if attach else None)
                )
            except ProcessLookupError:
                # Gone; once more, if its number belongs to a new process already.
                self._processes.pop(pid).close()
                continue
            level = min(self._level, len(process.ns_pids) - 1)
            return ProcessPages(pid, process.ns_pids[level], ranges)
        return None
