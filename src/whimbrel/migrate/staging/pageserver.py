"""CRIU's page server: the wire that it speaks (since 4.2), and how it is started on a connection.

One connection carries one layer: OPEN2 for each process (answered by one byte: is there a parent?), then its page
map in order of address as ADD_F, with the contents where it is present; CLOSE is answered when all is written.
Header: ``<I4xQQQ`` = command, pages, address, ``id << 8 | 1``.
"""

from __future__ import annotations

import shlex
import socket
import struct
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path

from whimbrel.checkpoint.images import PE_PRESENT
from whimbrel.checkpoint.swrk import criu_path, prepare_run_dir
from whimbrel.memory.batches import Pages
from whimbrel.memory.ranges import EMPTY, Ranges, as_ranges, intersect
from whimbrel.migrate.pace import Pace
from whimbrel.migrate.staging.layers import PARENT, KnownPages, Piece
from whimbrel.model.errors import StepFailed
from whimbrel.model.units import PAGE_BYTES

_HEADER = struct.Struct("<I4xQQQ")
_OPEN2, _ADD_F, _CLOSE = 4, 6, 0x1023
_OF_A_PROCESS = 1
_END = 1 << 63


class PageServerClient:
    """Sends layers, no faster than `pace` says."""

    def __init__(self, pace: Pace) -> None:
        self._known = KnownPages()
        self._pace = pace
        self.sent_bytes = 0

    def send(self, sock: socket.socket, batches: Iterable[Pages], ns_pids: Collection[int]) -> int:
        """One layer. Batches of one process follow each other, in order of address. Returns its pages.

        Raises StepFailed when the page server goes away or refuses.
        """
        try:
            return self._send(sock, batches, set(ns_pids))
        except OSError as error:
            raise StepFailed(f"the destination's page server went away: {error}") from error

    def _send(self, sock: socket.socket, batches: Iterable[Pages], left: set[int]) -> int:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pages = 0
        current = _Process(self._known)
        for batch in batches:
            if batch.ns_pid != current.ns_pid:
                self._finish(sock, current)
                current = self._open(sock, batch.ns_pid)
                left.discard(batch.ns_pid)
            self._send_map(sock, current.target, current.rows_to(batch.ranges), batch.contents)
            pages += len(batch.contents) // PAGE_BYTES
        self._finish(sock, current)
        for ns_pid in sorted(left):  # nothing new of these, but the layer must say where the old is
            self._finish(sock, self._open(sock, ns_pid))
        sock.sendall(_HEADER.pack(_CLOSE, 0, 0, 0))
        if sock.recv(4, socket.MSG_WAITALL) != bytes(4):
            raise StepFailed("the destination's page server could not write the pages: see its page-server.log")
        return pages

    def _open(self, sock: socket.socket, ns_pid: int) -> _Process:
        process = _Process(self._known, ns_pid)
        sock.sendall(_HEADER.pack(_OPEN2, 0, 0, process.target))
        if len(sock.recv(1)) != 1:
            raise StepFailed("the destination's page server refused a process: see its page-server.log")
        return process

    def _finish(self, sock: socket.socket, process: _Process) -> None:
        if process.ns_pid:
            self._send_map(sock, process.target, process.rest(), memoryview(b""))

    def _send_map(self, sock: socket.socket, target: int, rows: list[Piece], contents: memoryview) -> None:
        """Headers and contents by turns; few system calls for many small rows."""
        parts: list[bytes | memoryview] = []
        done = 0
        for start, end, flags in rows:
            parts.append(_HEADER.pack(flags << 16 | _ADD_F, (end - start) // PAGE_BYTES, start, target))
            if flags == PE_PRESENT:
                parts.append(contents[done : done + end - start])
                done += end - start
        for first in range(0, len(parts), 512):
            self._send_all(sock, parts[first : first + 512])

    def _send_all(self, sock: socket.socket, parts: list[bytes | memoryview]) -> None:
        total = sum(len(part) for part in parts)
        if self._pace.bytes_per_s:
            for piece in self._pace.pieces(b"".join(parts)):
                sock.sendall(piece)
        elif (sent := sock.sendmsg(parts)) < total:
            sock.sendall(b"".join(parts)[sent:])
        self.sent_bytes += total


class _Process:
    """How far the page map of one process has been told; 0 is none."""

    def __init__(self, known: KnownPages, ns_pid: int = 0) -> None:
        self.ns_pid = ns_pid
        self.target = ns_pid << 8 | _OF_A_PROCESS
        self._known = known
        self._before = known.ranges.get(ns_pid, EMPTY)
        self._told = 0

    def rows_to(self, own: Ranges) -> list[Piece]:
        """The page map from where it ended to the end of `own`, which come next in order of address."""
        end = int(own[-1, 1])
        rows = self._rows(end, own)
        self._told = end
        self._known.add(self.ns_pid, own)
        return rows

    def rest(self) -> list[Piece]:
        return self._rows(_END, EMPTY)

    def _rows(self, end: int, own: Ranges) -> list[Piece]:
        window = as_ranges([(self._told, end)])
        return KnownPages({self.ns_pid: intersect(self._before, window)}).map_with(self.ns_pid, own)


def serve(connection: socket.socket, layer: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    """Start CRIU's page server on an accepted connection: it writes `layer` and ends with the connection."""
    layer.mkdir(parents=True)
    number = int(layer.name)
    if number > 1:
        (layer / PARENT).symlink_to(f"../{number - 1}")
    script = (
        f"mount --bind {shlex.quote(str(prepare_run_dir(run_dir)))} /run && exec {shlex.quote(criu_path())} "
        f"page-server --images-dir {shlex.quote(str(layer))} --ps-socket {connection.fileno()} "
        "--log-file page-server.log -v1"
    )
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
