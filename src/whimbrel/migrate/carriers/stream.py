"""Over the page channel into the destination's page store."""

from __future__ import annotations

from pathlib import Path

import msgspec

from whimbrel.memory.tracker import TreeTracker
from whimbrel.migrate.carriers.base import Carried
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.migrate.pages import PageSender, vdso_of
from whimbrel.plan.strategies import Strategy


class StreamCarrier:
    """`holes`: CRIU's dump writes no pages, so ours may cross while it is at work."""

    def __init__(self, root_pid: int, channel: PageChannel, strategy: Strategy, *, holes: bool) -> None:
        self._root_pid = root_pid
        self._channel = channel
        self._strategy = strategy
        self._early = holes and strategy.rounds.limit > 0
        self._sender = PageSender(channel, strategy.codec)
        self._tracker = TreeTracker(root_pid)

    @property
    def sent_bytes(self) -> int:
        return self._channel.sent_bytes

    def round(self, number: int) -> Carried:
        carried = self._send(final=False)
        self._channel.send(Kind.ROUND, number)
        self._channel.expect(Kind.ACK, number=number)
        return carried

    def while_dumping(self) -> Carried:
        return self._send(final=True) if self._early else Carried()

    def last(self, images: Path) -> Carried:
        return self._sender.send(vdso_of(self._root_pid)) + self._send(final=True)

    def deliver(self, images: Path) -> None:
        files = {
            path.name: path.read_bytes()
            for path in images.iterdir()
            if path.is_file() and not path.is_symlink() and path.suffix == ".img"
        }
        self._channel.send(Kind.IMAGES, 0, msgspec.msgpack.encode(files))

    def answer(self, kind: Kind, number: int, payload: bytes) -> bool:
        return False

    def behind(self) -> None:
        """All of it crossed before the commit."""

    def close(self) -> None:
        self._tracker.close()
        self._sender.close()

    def _send(self, *, final: bool) -> Carried:
        return self._sender.send(self._tracker.scan(final=final))
