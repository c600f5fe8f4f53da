"""Pages out of the processes of a service and onto the page channel."""

from __future__ import annotations

import contextlib

import numpy as np

from whimbrel.memory.batches import made_ahead
from whimbrel.memory.codecs import Coded, Coding
from whimbrel.memory.processes import ns_pid_of, tree_of
from whimbrel.memory.ranges import as_ranges, total_bytes
from whimbrel.memory.tracker import ProcessPages
from whimbrel.memory.vmas import read_vmas
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.coder import Coder
from whimbrel.migrate.linkwatch import LinkWatch
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.strategies import Codec

CODEC_NAMES = {Coding.RAW: "raw", Coding.PACKED: "zstd", Coding.DELTA: "xor+zstd", Coding.SAME: "unchanged"}


class PageSender:
    """Reads pages out of the processes, codes and sends them: one thread reads and codes the next batch while this one
    sends."""

    def __init__(self, channel: PageChannel, codec: Codec = Codec.AUTO) -> None:
        self._channel = channel
        self._watch = LinkWatch(channel.sock)
        self._coder = Coder(codec, self._watch)

    def send(self, dirty: list[ProcessPages]) -> Carried:
        """Send all pages. Pages that vanish meanwhile are left out."""
        before = self._channel.sent_bytes
        carried = Carried()
        self._watch.limit(self._channel.limit_bytes_per_s)
        self._watch.begin()
        self._coder.begin(sum(process.size_bytes for process in dirty))
        for batch in made_ahead(dirty, self._coder, self._coder.batch_bytes):
            with self._watch.sending(packed=batch.packed):
                self._channel.send_pages(batch.ns_pid, batch.coded)
            carried += carried_of(batch.coded)
        sent_bytes = self._channel.sent_bytes - before
        return carried + Carried(sent_bytes=sent_bytes, remark=self._coder.remark)

    def close(self) -> None:
        """Free the copies of what crossed."""
        self._coder.close()


def carried_of(coded: Coded) -> Carried:
    counts = np.bincount(coded.codings, minlength=len(Coding)).tolist()
    return Carried(
        pages=len(coded.codings),
        zero_pages=counts[Coding.ZERO],
        codecs=tuple((name, counts[coding]) for coding, name in CODEC_NAMES.items() if counts[coding]),
    )


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
