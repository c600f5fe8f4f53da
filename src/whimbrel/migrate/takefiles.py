"""The destination's side of the files' connection: a thread of the receiving process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from whimbrel.migrate.filestream import RecordReader, accept_hello
from whimbrel.migrate.pagechannel import Kind
from whimbrel.migrate.sendfiles import seed_of
from whimbrel.model.errors import ProtocolMismatch, StepFailed, WhimbrelError
from whimbrel.runtime.moving import FileTarget
from whimbrel.storage.blocks import Digester
from whimbrel.storage.treesink import TreeSink


class FileArrival:
    """Folders that fill from a connection, pass by pass. `targets` are in the order that both sides agreed on."""

    def __init__(self, targets: Sequence[FileTarget], token: str) -> None:
        self._token = token
        digester = Digester(seed_of(token))
        self._sinks = [TreeSink(Path(target.path), digester, merged=target.merged) for target in targets]
        self._news = threading.Condition()
        self._passes = 0
        self._error: WhimbrelError | None = None

    def listen(self, host: str) -> int:
        """Wait, in a thread, for the one connection that knows the token. Returns the port."""
        listener = socket.create_server((host, 0))
        threading.Thread(target=self._take, args=(listener,), name="files", daemon=True).start()
        return int(listener.getsockname()[1])

    def wait(self, passes: int, *, timeout_s: float) -> None:
        """Until so many passes have arrived and were found whole. Raises what went wrong with them."""
        with self._news:
            self._news.wait_for(lambda: self._passes >= passes or self._error is not None, timeout_s)
            if self._passes < passes:
                raise self._error or StepFailed(f"the files did not arrive within {timeout_s:.0f} s")

    def settle(self) -> None:
        """Bring everything that arrived to the disk."""
        for sink in self._sinks:
            sink.settle()

    def _take(self, listener: socket.socket) -> None:
        channel = accept_hello(listener, self._token)
        reader = RecordReader(channel, self._sinks)
        try:
            while True:
                arrived = reader.take_pass()
                with self._news:
                    self._passes = arrived
                    self._news.notify_all()
                channel.send(Kind.ACK, arrived)
        except Exception as error:
            with self._news:
                self._error = error if isinstance(error, WhimbrelError) else ProtocolMismatch(f"files: {error}")
                self._news.notify_all()
            try:
                channel.send(Kind.ABORT, payload=str(self._error).encode())
            except StepFailed:
                return
            channel.drain()
