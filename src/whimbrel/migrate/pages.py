"""Pages out of the processes of a service and onto the page channel."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

import numpy as np

from whimbrel.memory.batches import Pieces, ReadAhead
from whimbrel.memory.codecs import Coded, Coding
from whimbrel.memory.processes import ns_pid_of, tree_of
from whimbrel.memory.tracker import ProcessPages
from whimbrel.memory.vmas import read_vdso
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.coder import Coder
from whimbrel.migrate.linkwatch import LinkWatch
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.strategies import Codec

LINK_STEP_S = 0.001
CODEC_NAMES = {Coding.RAW: "raw", Coding.PACKED: "zstd", Coding.DELTA: "xor+zstd", Coding.SAME: "unchanged"}


class PageSender:
    """Reads pages out of the processes, codes and sends them: one thread reads and codes the next batch while this one
    sends."""

    def __init__(self, channel: PageChannel, codec: Codec = Codec.AUTO) -> None:
        self._channel = channel
        self._watch = LinkWatch(channel.sock)
        self._coder = Coder(codec, self._watch)
        self._ahead = ReadAhead()

    def send(self, dirty: list[ProcessPages]) -> Carried:
        """Send all pages. Pages that vanish meanwhile are left out."""
        return self.send_until(dirty, lambda: False)[0]

    def send_until(
        self, dirty: list[ProcessPages], enough: Callable[[], bool], *, ahead_s: float = math.inf
    ) -> tuple[Carried, list[ProcessPages]]:
        """Send pages until it is `enough`; returns those that were not sent, too. At no time is the link given more
        than it carries in `ahead_s`, as far as its rate is known: whatever is sent next waits behind that."""
        before = self._channel.sent_bytes
        carried = Carried()
        self._watch.limit(self._channel.limit_bytes_per_s)
        self._watch.begin()
        self._coder.begin(sum(process.size_bytes for process in dirty))
        begun_s = time.monotonic()

        def batch_bytes() -> int:
            while not enough():
                rate = self._watch.link.bytes_per_s
                if not rate or ahead_s == math.inf:
                    return self._coder.batch_bytes()
                owed_s = (self._channel.sent_bytes - before) / rate - (time.monotonic() - begun_s)
                if owed_s < ahead_s:  # one batch is read while another is sent
                    half_bytes = int(rate * ahead_s / 2) // PAGE_BYTES * PAGE_BYTES
                    return max(PAGE_BYTES, min(self._coder.batch_bytes(), half_bytes))
                time.sleep(LINK_STEP_S)
            return 0

        pieces = Pieces(dirty, batch_bytes)
        for batch in self._ahead.batches(pieces, self._coder):
            with self._watch.sending(packed=batch.packed):
                self._channel.send_pages(batch.ns_pid, batch.coded)
            carried += carried_of(batch.coded)
        sent_bytes = self._channel.sent_bytes - before
        return carried + Carried(sent_bytes=sent_bytes, remark=self._coder.remark), pieces.left()

    def crosses_in(self, seconds: float) -> float:
        """Bytes on the wire that the link carries in so long; infinite while it is not known."""
        return self._watch.link.bytes_per_s * seconds or math.inf

    def close(self) -> None:
        """Free the copies of what crossed."""
        self._ahead.close()
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
            found.append(ProcessPages(pid, ns_pid_of(pid), read_vdso(pid)))
    return found
