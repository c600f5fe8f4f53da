"""Pages out of the processes of a service and onto the page channel."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

import numpy as np

from whimbrel.memory.batches import BATCH_BYTES, Pieces, PieceSource, ReadAhead
from whimbrel.memory.codecs import Coded, Coding
from whimbrel.memory.processes import ns_pid_of, tree_of
from whimbrel.memory.tracker import ProcessPages
from whimbrel.memory.vmas import read_vdso
from whimbrel.migrate.backlog import Backlog, Portions
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.coder import Coder
from whimbrel.migrate.linkwatch import LinkWatch
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.model.units import PAGE_BYTES
from whimbrel.plan.strategies import Codec

LINK_STEP_S = 0.001
LINK_PATIENCE_S = 1.0
"""A link that does nothing for so long may be cut: the next batch finds out."""
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
        size_bytes = sum(process.size_bytes for process in dirty)
        pieces = Pieces(dirty, self._begin(size_bytes, enough, ahead_s))
        return self._send(pieces, size_bytes), pieces.left()

    def send_left(
        self, backlog: Backlog, enough: Callable[[], bool], *, ahead_s: float, most_bytes: int = BATCH_BYTES
    ) -> Carried:
        """The same for a backlog, from which another thread may take; at most `most_bytes` at once."""
        size_bytes = backlog.left_bytes
        return self._send(Portions(backlog, self._begin(size_bytes, enough, ahead_s, most_bytes)), size_bytes)

    def _begin(
        self, size_bytes: int, enough: Callable[[], bool], ahead_s: float, most_bytes: int = BATCH_BYTES
    ) -> Callable[[], int]:
        """Pages of so many bytes come now. Returns what says how large the next batch may be, once there is room for it
        on the link; 0 when it is enough."""
        self._watch.limit(self._channel.limit_bytes_per_s)
        self._watch.begin()
        self._coder.begin(size_bytes)

        def batch_bytes() -> int:
            patience_until_s = time.monotonic() + LINK_PATIENCE_S
            while not enough():
                rate = self._watch.link.bytes_per_s
                if not rate or ahead_s == math.inf:
                    return min(self._coder.batch_bytes(), most_bytes)
                if self._watch.owed_s() < ahead_s or time.monotonic() > patience_until_s:
                    # one batch is read while another is sent
                    half_bytes = int(rate * ahead_s / 2 * self._coder.shrinks) // PAGE_BYTES * PAGE_BYTES
                    return max(PAGE_BYTES, min(self._coder.batch_bytes(), half_bytes, most_bytes))
                self._watch.hold_back(LINK_STEP_S)
            return 0

        return batch_bytes

    def _send(self, pieces: PieceSource, size_bytes: int) -> Carried:
        before = self._channel.sent_bytes
        carried = Carried()
        for batch in self._ahead.batches(pieces, self._coder, size_bytes=size_bytes):
            with self._watch.sending(packed=batch.packed):
                self._channel.send_pages(batch.ns_pid, batch.coded)
            carried += carried_of(batch.coded)
        return carried + Carried(sent_bytes=self._channel.sent_bytes - before, remark=self._coder.remark)

    def hurry(self) -> None:
        """From now on the service waits for what is sent."""
        self._coder.hurry()

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
