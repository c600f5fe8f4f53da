"""The bulk connection of one migration, source to destination: pages, files, images, and the commit.

Frame: 24 bytes little-endian ``<B3xIQQ``: kind, number, ranges, payload bytes; then the payload. The peer is
treated as hostile: lengths are bounded before anything is allocated, and the first frame must carry the token
that the destination's agent gave to the source's.

    HELLO    token                                  source says who it is
    PAGES    number = pid in the container; pages of that process, see below
    ROUND    number = round; answered by ACK        everything up to here is in the store
    FILES    changed files, on a connection of their own: see `filestream`
    IMAGES   msgpack {name: bytes}                  what CRIU wrote
    START    msgpack RestoreStart                   CRIU may begin: its images are there
    RESTORE  msgpack RestoreOrder                   all is there but what it names as to come
    PROBE    anything, answered by ACK: how fast is the link?
    REQUEST  number = pid in the container, payload = a page number (uint64): send it now (post-copy only)
    READY    destination: restored, not yet running
    GO       source: committed; run
    RUNNING  destination: runs (before the first packet is let in)
    FILLED   msgpack FillReport                     all pages are local
    ABORT    text                                   either side gives up (only before GO)

PAGES carries `ranges` runs, then contents. A run is two uint64, ``start | coding, end``: byte addresses of whole
pages that are coded alike (`memory.codecs.Coding`), ascending. At most 4,096 pages a frame. Then:

    RAW            4096 bytes for each page of each raw run, in order
    ZERO           nothing: the pages hold zeros
    SAME           nothing: the pages are as they last crossed
    PACKED, DELTA  together one block, up to the end of the frame: uint64 sum of all 64-bit words of its pages as they
                   are at the source; then one zstd frame: the PACKED pages in order, then for each DELTA page its
                   difference from what it last crossed as, eight uint64 that say which of its 512 words differ (the
                   first word the lowest bit of the first) and those words, XORed

"Last crossed" means before this frame, in this connection.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from enum import IntEnum

import msgspec

from whimbrel.memory.codecs import Coded
from whimbrel.migrate.pace import Pace
from whimbrel.model.errors import ProtocolMismatch, StepFailed, Unreachable
from whimbrel.network.unread import Datagram

HEADER = struct.Struct("<B3xIQQ")
MAX_PAYLOAD_BYTES = 1 << 34
MAX_RANGES = 1 << 20
COPIED_BYTES = 1 << 14
DRAINED_BYTES = 1 << 16
NOT_SENT_BYTES = 128 << 10
PROBE_BYTES = 64 << 10
PROBE_ENOUGH_S = 0.02
_TCP_NOTSENT_LOWAT = 25  # Python does not name it
_LINK_WATCH = (
    (socket.TCP_KEEPIDLE, 1),
    (socket.TCP_KEEPINTVL, 1),
    (socket.TCP_KEEPCNT, 2),
    (socket.TCP_USER_TIMEOUT, 2000),
)


class PeerGone(StepFailed):
    """The other side ended the connection, or its machine says that nobody has it any more: no matter of the link."""


class GivenUp(StepFailed):
    """The destination's own word: it did not commit, has undone what it did, and never will."""


class Kind(IntEnum):
    HELLO = 1
    PAGES = 2
    ROUND = 3
    FILES = 4
    IMAGES = 5
    RESTORE = 6
    READY = 7
    GO = 8
    RUNNING = 9
    FILLED = 10
    ABORT = 11
    ACK = 12
    REQUEST = 13
    PROBE = 14
    START = 15


class RestoreStart(msgspec.Struct, frozen=True, kw_only=True):
    """What CRIU is told when it begins: `lazy`: pages may come after the mappings are laid out; `stdio` maps CRIU's
    names of the old pipes (``pipe:[123]``) to 1 or 2; `staged`: CRIU finds the pages in its image files, so the page
    store has none."""

    lazy: bool
    stdio: dict[str, int]
    staged: bool = False


class RestoreOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the destination cannot know: `behind`: byte ranges that come after the resume, by the pid in the container;
    `beside`: those that come during the restore, before GO; `file_passes` of files must have arrived, whole and
    checked; `written`: files of a root on shared storage as the source sees them (path, size, time of change in ns);
    `needed`: where the processes waited for their pages when they last arrived (`memory.needed`); `datagrams`: what its
    UDP sockets held that it had not read; `held_ms`: so long its packets have been held."""

    behind: dict[int, bytes] = {}
    beside: dict[int, bytes] = {}
    file_passes: int = 0
    written: tuple[tuple[str, int, int], ...] = ()
    needed: dict[int, bytes] = {}
    datagrams: list[Datagram] = []
    held_ms: float = 0.0


class FillReport(msgspec.Struct, frozen=True, kw_only=True):
    """`early_pages` were placed before the resume, besides the `eager_pages` that CRIU itself restored; `fault_ms` is
    the time that answering all `faults` took."""

    faults: int
    fault_ms: float
    fill_ms: float
    filled_bytes: int
    early_pages: int
    eager_pages: int


class LinkProbe:
    """How fast a link carries: one byte, to know how long the way is; then a little, and more if that went through
    quickly, three times at most; the last try counts. `size_bytes` is the next try's, 0 when there is none."""

    def __init__(self) -> None:
        self.size_bytes = 1
        self.bytes_per_s = 0.0
        self._way_s = -1.0
        self._left = 3

    def took(self, seconds: float) -> None:
        """The try arrived, and its answer; so long it took."""
        if self._way_s < 0:
            self._way_s, self.size_bytes = seconds, PROBE_BYTES
            return
        carrying_s = max(seconds - self._way_s, 1e-6)
        self.bytes_per_s = self.size_bytes / carrying_s
        self._left -= 1
        # a connection opens up by round trips: what took few of them tells of those
        enough = carrying_s > PROBE_ENOUGH_S + 2 * self._way_s or not self._left
        self.size_bytes = 0 if enough else self.size_bytes * 8


class PageChannel:
    """Frames over one TCP socket. Blocking; `sent_bytes` counts what left this side, headers too."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A link that dies without a word must not keep a container frozen.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _LINK_WATCH:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self.sock = sock
        self.sent_bytes = 0
        self._pace = Pace()
        self._sending = threading.Lock()

    @classmethod
    def connect(cls, host: str, port: int, token: str, *, number: int = 0, timeout_s: float = 3.0) -> PageChannel:
        """`number` says what the connection is for: 0 for pages."""
        try:
            sock = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            raise Unreachable(
                f"the page channel of the destination at {host}:{port} does not answer: {error}"
            ) from error
        sock.settimeout(None)
        channel = cls(sock)
        channel.send(Kind.HELLO, number, token.encode())
        return channel

    @property
    def limit_bytes_per_s(self) -> float:
        return self._pace.bytes_per_s

    def limit(self, bandwidth_bps: float) -> None:
        """From now on send no faster than this (bits per second; 0 = as fast as it goes)."""
        self._pace.limit(bandwidth_bps)

    def measure_bytes_per_s(self) -> float:
        """How fast the link carries, by `LinkProbe`."""
        probe, number = LinkProbe(), 0
        while probe.size_bytes:
            start = time.monotonic()
            self.send(Kind.PROBE, number, bytes(probe.size_bytes))
            self.expect(Kind.ACK, number=number)
            probe.took(time.monotonic() - start)
            number += 1
        return probe.bytes_per_s

    def small_backlog(self) -> None:
        """From now on what is sent waits here, not in the kernel: a page that is asked for must not queue behind
        megabytes of others."""
        self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)

    def replace(self, fresh: PageChannel) -> None:
        """Go on with another connection; the old one is closed."""
        with self._sending:
            old, self.sock = self.sock, fresh.sock
            self._pace.go_on()
        old.close()

    def _put(self, *parts: bytes | memoryview) -> None:
        """Hand all parts to the connection, in slices when there is a limit."""
        for index, part in enumerate(parts):
            more = socket.MSG_MORE if index < len(parts) - 1 else 0
            for piece in self._pace.pieces(part):
                self.sock.sendall(piece, more)

    def send(self, kind: Kind, number: int = 0, payload: bytes | memoryview = b"", *, ranges: int = 0) -> None:
        header = HEADER.pack(kind, number, ranges, len(payload))
        try:
            with self._sending:
                if len(payload) <= COPIED_BYTES:  # a copy costs less than a system call
                    self._put(header + bytes(payload))
                else:
                    self._put(header, payload)
        except OSError as error:
            raise StepFailed(f"the link to the other side broke while sending: {error}") from error
        self.sent_bytes += HEADER.size + len(payload)

    def send_pages(self, ns_pid: int, coded: Coded) -> None:
        """One PAGES frame."""
        runs = coded.runs.tobytes()
        try:
            header = HEADER.pack(Kind.PAGES, ns_pid, len(coded.runs), coded.wire_bytes)
            with self._sending:
                self._put(header + runs, *(part for part in (coded.raw, coded.block) if len(part)))
        except OSError as error:
            raise StepFailed(f"the link to the destination broke while pages crossed: {error}") from error
        self.sent_bytes += HEADER.size + coded.wire_bytes

    def receive_exactly(self, view: memoryview) -> None:
        while len(view):
            try:
                count = self.sock.recv_into(view, len(view), socket.MSG_WAITALL)
            except ConnectionResetError as error:
                raise PeerGone("the other side reset the connection") from error
            except OSError as error:
                raise StepFailed(f"the link to the other side broke: {error}") from error
            if count == 0:
                raise PeerGone("the other side closed the connection")
            view = view[count:]

    def receive_header(self) -> tuple[Kind, int, int, int]:
        """Returns (kind, number, ranges, payload bytes). Raises ProtocolMismatch on nonsense."""
        raw = bytearray(HEADER.size)
        self.receive_exactly(memoryview(raw))
        kind, number, ranges, size = HEADER.unpack(raw)
        if size > MAX_PAYLOAD_BYTES or ranges > MAX_RANGES or kind not in Kind._value2member_map_:
            raise ProtocolMismatch("the other side of the page channel does not speak our protocol")
        return Kind(kind), number, ranges, size

    def receive_payload(self, size: int) -> bytes:
        payload = bytearray(size)
        self.receive_exactly(memoryview(payload))
        return bytes(payload)

    def expect(self, wanted: Kind, *, number: int | None = None) -> bytes:
        """Wait for one kind of frame; ABORT and anything else raise StepFailed with the other side's words."""
        kind, got, _, size = self.receive_header()
        payload = self.receive_payload(size)
        self.check(kind, got, payload, wanted, number=number)
        return payload

    @staticmethod
    def check(kind: Kind, got: int, payload: bytes, wanted: Kind, *, number: int | None = None) -> None:
        """Raises GivenUp for an ABORT, ProtocolMismatch for any other frame than the one that is due."""
        if kind is Kind.ABORT:
            raise GivenUp(payload.decode(errors="replace"))
        if kind is not wanted or (number is not None and got != number):
            raise ProtocolMismatch(f"{kind.name} {got} where {wanted.name} was due")

    def drain(self, within_s: float = math.inf) -> None:
        """Say that nothing more comes from here, and throw away what does, until the other side has ended as well: so
        that it comes to read why."""
        until_s = time.monotonic() + within_s
        with contextlib.suppress(OSError):  # the other side was faster
            self.sock.shutdown(socket.SHUT_WR)
            while (left_s := until_s - time.monotonic()) > 0:
                self.sock.settimeout(None if left_s == math.inf else left_s)
                if not self.sock.recv(DRAINED_BYTES):
                    return

    def close(self) -> None:
        self.sock.close()

    def shutdown(self) -> None:
        """Wake whoever waits on this socket in another thread; then `close`."""
        self._pace.interrupt()
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
