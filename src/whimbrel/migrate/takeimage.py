"""The process at a destination that takes one image from another node into this node's store.

A process, because digesting and writing a whole image would hold up the agent, which may be in the middle of another
migration's freeze. It ends with the agent (its standard input ends), with the connection, or when it is done; a broken
transfer leaves nothing: what a process that ended in the middle left, its agent removes, or the next one.

Run as ``python -m whimbrel.migrate.takeimage``; the first line on stdin is a `TakeOrder`, events go to stdout as JSON
lines: ``listening``, then ``taken`` or ``failed``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

import msgspec

from whimbrel.migrate import failpoints
from whimbrel.migrate.filestream import RecordReader, accept_hello
from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.migrate.sendfiles import seed_of
from whimbrel.model.errors import StepFailed, WhimbrelError
from whimbrel.storage.blocks import Digester
from whimbrel.storage.images import ImageStore
from whimbrel.storage.treesink import TreeSink

COMES_WITHIN_S = 20.0


class TakeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """`tree` is what the source vouches for; see `storage.images`."""

    host: str
    token: str
    store: str
    digest: str
    tree: str


def say(event: str, **fields: object) -> None:
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode({"event": event, **fields}) + b"\n")


class Taker:
    def __init__(self, order: TakeOrder) -> None:
        self._order = order
        self._channel: PageChannel | None = None
        self._listener = socket.create_server((order.host, 0))
        self._passes = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def take(self) -> None:
        self._listener.settimeout(COMES_WITHIN_S)
        try:
            self._channel = accept_hello(self._listener, self._order.token)
        except OSError as error:
            raise StepFailed(f"nobody brought image {self._order.digest}") from error
        store = ImageStore(Path(self._order.store))
        if not store.take(self._order.digest, self._order.tree, self._fill):
            self._passes = RecordReader(self._channel, []).skip_pass()
        self._channel.send(Kind.ACK, self._passes)

    def _fill(self, folder: Path) -> None:
        assert self._channel is not None
        sink = TreeSink(folder, Digester(seed_of(self._order.token)))
        try:
            self._passes = RecordReader(self._channel, [sink]).take_pass()
            failpoints.wait_at("takeimage.arrived")
        finally:
            sink.close()

    def refuse(self, error: Exception) -> None:
        if self._channel is not None:
            with contextlib.suppress(StepFailed):
                self._channel.send(Kind.ABORT, payload=str(error).encode())
                self._channel.drain()


def main() -> int:
    taker = Taker(msgspec.json.decode(sys.stdin.buffer.readline(), type=TakeOrder))

    def watch_agent() -> None:
        os.read(0, 1)
        os._exit(1)  # at once: the next agent sweeps the store, and nobody may still be at work in it then

    threading.Thread(target=watch_agent, name="watch-agent", daemon=True).start()
    say("listening", port=taker.port)
    try:
        taker.take()
    except (WhimbrelError, OSError) as error:
        say("failed", error=str(error))
        taker.refuse(error)
        return 1
    say("taken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
