"""Pages out of the processes of a service and onto the page channel."""

from __future__ import annotations

import contextlib

from whimbrel.memory.batches import read_ahead
from whimbrel.memory.processes import ns_pid_of, tree_of
from whimbrel.memory.ranges import as_ranges, total_bytes
from whimbrel.memory.tracker import ProcessPages
from whimbrel.memory.vmas import read_vmas
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.units import PAGE_BYTES


class PageSender:
    """Reads pages out of the processes and sends them."""

    def __init__(self, channel: PageChannel) -> None:
        self._channel = channel

    def send(self, dirty: list[ProcessPages]) -> int:
        """Send all pages; returns how many bytes of pages crossed. Pages that vanish meanwhile are left out."""
        sent = 0
        for batch in read_ahead(dirty):
            self._channel.send_pages(batch.ns_pid, batch.ranges, batch.contents)
            sent += len(batch.contents)
        return sent


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
