"""Over the page channel into the destination's page store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from whimbrel.checkpoint.images import lazy_ranges, pagemap_pids, restart_ranges
from whimbrel.memory.batches import merged
from whimbrel.memory.ranges import EMPTY, intersect, subtract
from whimbrel.memory.tracker import ProcessPages, TreeTracker
from whimbrel.migrate.backlog import Backlog
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.migrate.pages import PageSender, vdso_of
from whimbrel.plan.strategies import Strategy

BESIDE_BYTES, BESIDE_S = 2 << 20, 0.02
"""From so much on, or as much as takes the link so long, pages that are left when the dump is written cross while the
destination restores."""
AHEAD_S = 0.02
"""So much of the link's time may wait in the connection when the order to restore is sent."""
HOLDING_AHEAD_S = 0.004
"""And so much when the last pages come: what is sent before them may be written again, or given back."""
BEHIND_S, BEHIND_BYTES = 0.02, 1 << 18
"""So much of the link's time, and so much at once, may a page that the program waits for wait behind others."""


class StreamCarrier:
    """`holes`: CRIU's dump writes no pages, so ours may cross while it is at work."""

    def __init__(self, root_pid: int, channel: PageChannel, strategy: Strategy, *, holes: bool) -> None:
        self._root_pid = root_pid
        self._channel = channel
        self._lazy = strategy.lazy
        self._early = holes and strategy.rounds.limit > 0
        self._behind = strategy.behind
        self._may_follow = False
        self._last_round: list[ProcessPages] = []
        self._codec = strategy.codec
        self._backlog = Backlog([])
        self._unsent: list[ProcessPages] = []
        self._beside: list[ProcessPages] = []
        self._vdso: list[ProcessPages] = []
        self._sender = PageSender(channel, strategy.codec)
        self._tracker = TreeTracker(root_pid)

    @property
    def sent_bytes(self) -> int:
        return self._channel.sent_bytes

    @property
    def parent_image(self) -> str:
        return ""

    def round(self, number: int) -> Carried:
        self._last_round = self._tracker.scan()
        carried = self._send(self._last_round)
        self._end_round(number)
        return carried

    def dirty_bytes(self) -> int:
        return self._tracker.written_bytes()

    def leave_behind(self) -> None:
        self._may_follow = self._lazy

    def while_holding(self, held: Callable[[], bool]) -> Carried:
        if not self._early or self._behind:
            return Carried()
        dirty = self._in_order(merged(self._unsent, self._tracker.scan(attach=False)))
        carried, self._unsent = self._sender.send_until(dirty, held, ahead_s=HOLDING_AHEAD_S)
        if carried.pages and not self._unsent and not held():
            self._end_round(0)  # or the destination would have to put all turns in order when the service stands still
        return carried

    def while_dumping(self, dumped: Callable[[], bool]) -> Carried:
        """Re-armed, so that `last` finds only what CRIU's own work in the processes touched."""
        self._sender.hurry()
        self._vdso = vdso_of(self._root_pid)  # the tree stands still: what is found now need not be looked for later
        if not self._early or self._behind:
            return Carried()
        unsent = self._tracker.there_still(self._unsent)  # a program gives back what it took for its work
        dirty = self._in_order(merged(unsent, self._tracker.scan(final=True, rearm=True)))
        if not self._lazy:
            self._unsent = []
            return self._send(dirty)
        carried, self._unsent = self._sender.send_until(dirty, dumped, ahead_s=AHEAD_S)
        return carried

    def last(self, images: Path) -> Carried:
        dirty = merged(self._unsent, self._tracker.scan(final=True), self._vdso)
        much = self._lazy and sum(part.size_bytes for part in dirty) >= self._beside_bytes()
        if not self._behind and not much:
            return self._send(dirty)
        awaited = restart_ranges(images)
        lazy = {ns_pid: subtract(lazy_ranges(images, ns_pid), awaited) for ns_pid in pagemap_pids(images)}
        late = [replace(part, ranges=intersect(part.ranges, lazy.get(part.ns_pid, EMPTY))) for part in dirty]
        now = [replace(part, ranges=subtract(part.ranges, rest.ranges)) for part, rest in zip(dirty, late, strict=True)]
        if self._behind or self._may_follow:
            self._backlog = Backlog(self._in_order(late))
        else:
            self._beside = late
        return self._send(now)

    def beside_restore(self, over: Callable[[], bool]) -> Carried:
        if self._may_follow:
            return self._sender.send_left(self._backlog, over, ahead_s=AHEAD_S)
        return self._send(self._beside)

    def deliver(self, images: Path) -> Carried:
        files = {
            path.name: path.read_bytes()
            for path in images.iterdir()
            if path.is_file() and not path.is_symlink() and path.suffix == ".img"
        }
        payload = msgspec.msgpack.encode(files)
        self._channel.send(Kind.IMAGES, 0, payload)
        return Carried(sent_bytes=len(payload))

    def ranges_behind(self) -> dict[int, bytes]:
        return self._backlog.ranges()

    def ranges_beside(self) -> dict[int, bytes]:
        return {part.ns_pid: part.ranges.tobytes() for part in self._beside if len(part.ranges)}

    def answer(self, kind: Kind, number: int, payload: bytes) -> bool:
        if kind is not Kind.REQUEST or len(payload) != 8:
            return False
        self._backlog.answer(self._channel, number, int.from_bytes(payload, "little"))
        return True

    def send_behind(self) -> None:
        self._channel.small_backlog()
        self._sender.send_left(self._backlog, lambda: False, ahead_s=BEHIND_S, most_bytes=BEHIND_BYTES)

    def link_was_cut(self) -> None:
        self._backlog.all_again()
        # What it knew was of the old connection, and so were the copies that differences build on.
        self._sender.close()
        self._sender = PageSender(self._channel, self._codec)

    def interrupt(self) -> None:
        """There is nothing beside the page channel."""

    def close(self) -> None:
        self._tracker.close()
        self._sender.close()

    def _end_round(self, number: int) -> None:
        self._channel.send(Kind.ROUND, number)
        self._channel.expect(Kind.ACK, number=number)

    def _send(self, dirty: list[ProcessPages]) -> Carried:
        return self._sender.send(dirty)

    def _in_order(self, dirty: list[ProcessPages]) -> list[ProcessPages]:
        """Where not all may cross in the freeze, first what the program writes again and again: it was written in the
        last round, too. What it has written once it may not need for long."""
        if not self._may_follow:
            return dirty
        before = {part.ns_pid: part.ranges for part in self._last_round}
        hot = [replace(part, ranges=intersect(part.ranges, before.get(part.ns_pid, EMPTY))) for part in dirty]
        rest = [replace(part, ranges=subtract(part.ranges, one.ranges)) for part, one in zip(dirty, hot, strict=True)]
        return [part for part in (*hot, *rest) if len(part.ranges)]

    def _beside_bytes(self) -> float:
        return min(BESIDE_BYTES, self._sender.crosses_in(BESIDE_S))
