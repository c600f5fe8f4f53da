"""Records of folders (`storage.records`) on a connection of their own, in frames of bounded size.

Frames are those of the page channel. The first is HELLO with the token of the migration and the number `FILES_HELLO`,
which tells this connection from the one for pages.

    FILES    number = which folder; a piece of a pass: a msgpack array of records
    ROUND    number = pass: it ends here; answered by ACK when all of it is applied and checked
    ABORT    text: the destination cannot take it
"""

from __future__ import annotations

import hmac
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence

import msgspec

from whimbrel.migrate.pagechannel import Kind, PageChannel
from whimbrel.model.errors import BadInput, ProtocolMismatch, WhimbrelError
from whimbrel.storage.blocks import BLOCK_SIZES
from whimbrel.storage.records import Record, decode_all, encode
from whimbrel.storage.treesink import TreeSink

FILES_HELLO = 1
FRAME_BYTES = 1 << 18
MOST_FRAME_BYTES = FRAME_BYTES + 2 * BLOCK_SIZES[-1]
HELLO_S = 10.0
_BURST_S = 0.01
_ARRAY = struct.Struct(">BI")  # msgpack's header of an array with a 32-bit count


class RecordWriter:
    """Gathers records into frames and sends them, no faster than `bandwidth_bps` (0 = as fast as it goes)."""

    def __init__(self, channel: PageChannel, bandwidth_bps: float = 0.0) -> None:
        self._channel = channel
        self._bandwidth_bps = bandwidth_bps
        self._taken_until = 0.0
        self._folder = 0
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def to(self, folder: int) -> Callable[[Record], None]:
        """What records of one folder are handed to."""
        self.flush()
        self._folder = folder
        return self.write

    def write(self, record: Record) -> None:
        part = encode(record)
        self._parts.append(part)
        self._size_bytes += len(part)
        if self._size_bytes >= FRAME_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            self._listen()
            self._pace(self._size_bytes)
            frame = b"".join((_ARRAY.pack(0xDD, len(self._parts)), *self._parts))
            self._channel.send(Kind.FILES, self._folder, frame)
            self._parts, self._size_bytes = [], 0

    def end_pass(self, number: int) -> None:
        self.flush()
        self._channel.send(Kind.ROUND, number)

    def _pace(self, size_bytes: int) -> None:
        if self._bandwidth_bps > 0:
            now = time.monotonic()
            self._taken_until = max(self._taken_until, now - _BURST_S) + size_bytes * 8 / self._bandwidth_bps
            time.sleep(max(0.0, self._taken_until - now))

    def _listen(self) -> None:
        """A destination that cannot go on says so at once, not at the end of a long pass."""
        while select.select([self._channel.sock], [], [], 0)[0]:
            kind, number, _, size = self._channel.receive_header()
            if kind is not Kind.ACK:
                self._channel.check(kind, number, self._channel.receive_payload(size), Kind.ACK)


def accept_hello(listener: socket.socket, token: str) -> PageChannel:
    """The one connection that knows the token; others are shut out. Then nobody else may come. Raises OSError when the
    listener's time is over."""
    with listener:
        while True:
            sock, _ = listener.accept()
            channel = PageChannel(sock)
            sock.settimeout(HELLO_S)
            try:
                known = hmac.compare_digest(channel.expect(Kind.HELLO, number=FILES_HELLO), token.encode())
            except WhimbrelError:
                known = False
            if known:
                sock.settimeout(None)
                return channel
            sock.close()


class RecordReader:
    """Applies what comes to the folders, which are given in the order of their numbers."""

    def __init__(self, channel: PageChannel, sinks: Sequence[TreeSink]) -> None:
        self._channel = channel
        self._sinks = sinks
        self._buffer = bytearray(FRAME_BYTES * 2)

    def take_pass(self) -> int:
        """Returns the number of the pass that has arrived, whole and checked. Raises what `TreeSink` does,
        StepFailed when the connection ends."""
        while True:
            kind, number, _, size = self._channel.receive_header()
            if size > MOST_FRAME_BYTES:
                raise ProtocolMismatch(f"a frame of {size} bytes of files is more than is agreed")
            payload = self._receive(size)
            if kind is Kind.ROUND:
                for sink in self._sinks:
                    sink.end_pass()
                return number
            if kind is not Kind.FILES:
                self._channel.check(kind, number, bytes(payload), Kind.FILES)
            if number >= len(self._sinks):
                raise ProtocolMismatch(f"there is no place for files number {number}")
            self._sinks[number].apply(_decoded(payload))

    def _receive(self, size: int) -> memoryview:
        """A payload, good until the next one comes: it is never copied on its way into the files."""
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        payload = memoryview(self._buffer)[:size]
        self._channel.receive_exactly(payload)
        return payload

    def skip_pass(self) -> int:
        """Throw away a pass that is not needed; returns its number."""
        while True:
            kind, number, _, size = self._channel.receive_header()
            payload = self._channel.receive_payload(min(size, MOST_FRAME_BYTES))
            if kind is Kind.ROUND:
                return number
            self._channel.check(kind, number, payload, Kind.FILES)


def _decoded(payload: memoryview) -> list[Record]:
    try:
        records: list[Record] = list(decode_all(payload))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadInput(f"what came as files is none: {error}") from error
    return records
