"""Sessions, pictures and their history: the part of an offloading service that is not the computing. Runs inside the
container; needs numpy and Pillow.

A request is a line of JSON, and after it the bytes of a picture if it says so (``"bytes"``); the answer is a line of
JSON. Sessions outlive their connections. Of each session the service remembers how many pictures it has worked on,
what was seen in them, and the latest pictures themselves, decoded, up to ``KEEP_MB``.

    {"op": "enrol", "session": S, "name": N, "bytes": B}    tell the service what something looks like
    {"op": "work", "session": S, "bytes": B}                 one picture: what is in it
    {"op": "state", "session": S}                            all that is remembered, pictures by their checksums
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import selectors
import socket
import time
import zlib
from collections import Counter, deque
from typing import Any, Protocol

import numpy as np  # type: ignore[import-not-found,unused-ignore]
from PIL import Image  # type: ignore[import-not-found,unused-ignore]

MAX_LINE_BYTES = 4096
MAX_PICTURE_BYTES = 1 << 22
MAX_SESSIONS = 1000


_libc = ctypes.CDLL(None)


def give_back_memory() -> None:
    """What the allocator keeps of a picture's temporaries goes back to the kernel: a node has other services, and what
    is not there need not be moved."""
    _libc.malloc_trim(0)


class Worker(Protocol):
    """The computing. Both raise ValueError for a picture that is of no use."""

    def enrol(self, known: dict[str, Any], name: str, picture: Any) -> None:
        """Remember in `known`, which is the session's, what `name` looks like."""

    def work(self, known: dict[str, Any], picture: Any) -> list[dict[str, Any]]:
        """What is in the picture: each with a ``"name"``."""


class Session:
    """What is remembered of one user."""

    def __init__(self) -> None:
        self.count = 0
        self.known: dict[str, Any] = {}
        self.seen: Counter[str] = Counter()
        self.latest: dict[str, Any] = {}
        self.pictures: deque[Any] = deque()
        self.kept_bytes = 0

    def keep(self, picture: Any, most_bytes: int) -> None:
        """Remember the picture, and forget the oldest ones when together they would be too large."""
        self.pictures.append(picture)
        self.kept_bytes += picture.nbytes
        while self.kept_bytes > most_bytes:
            self.kept_bytes -= self.pictures.popleft().nbytes

    def state(self) -> dict[str, Any]:
        checksums = b"".join(zlib.crc32(kept.tobytes()).to_bytes(4, "big") for kept in self.pictures)
        return {
            "count": self.count,
            "known": sorted(self.known),
            "seen": dict(self.seen),
            "latest": self.latest,
            "pictures": len(self.pictures),
            "pictures_crc": zlib.crc32(checksums),
        }


class Server:
    """One thread, one selector; one picture at a time."""

    def __init__(self, port: int, worker: Worker, keep_mb: int) -> None:
        self.worker = worker
        self.keep_bytes = keep_mb << 20
        self.sessions: dict[str, Session] = {}
        self.partial: dict[socket.socket, bytearray] = {}
        self.selector = selectors.DefaultSelector()
        self.tcp = socket.create_server(("0.0.0.0", port), backlog=64)
        self.tcp.setblocking(False)
        self.selector.register(self.tcp, selectors.EVENT_READ, self.on_connection)

    def on_connection(self, listener: socket.socket) -> None:
        try:
            conn, _ = listener.accept()
        except OSError:
            return  # the user left between the handshake and here
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.partial[conn] = bytearray()
        self.selector.register(conn, selectors.EVENT_READ, self.on_data)

    def on_data(self, conn: socket.socket) -> None:
        """Answer every whole request; the connection ends when the user left or does not keep to the form."""
        try:
            data = conn.recv(1 << 18)
            buffer = self.partial[conn]
            buffer += data
            while data and (request := self.next_request(buffer)) is not None:
                conn.sendall(json.dumps(self.answer(*request)).encode() + b"\n")
                give_back_memory()
            if data:
                return
        except (OSError, ValueError):
            pass
        self.selector.unregister(conn)
        del self.partial[conn]
        conn.close()

    @staticmethod
    def next_request(buffer: bytearray) -> tuple[dict[str, Any], bytes] | None:
        """Take one whole request off the buffer; None when there is none yet. ValueError: not in the form."""
        end = buffer.find(b"\n")
        if end < 0:
            if len(buffer) > MAX_LINE_BYTES:
                raise ValueError("a line without end")
            return None
        head = json.loads(buffer[:end])
        size = int(head.get("bytes", 0)) if isinstance(head, dict) else -1
        if not 0 <= size <= MAX_PICTURE_BYTES:
            raise ValueError("not a request")
        if len(buffer) < end + 1 + size:
            return None
        body = bytes(buffer[end + 1 : end + 1 + size])
        del buffer[: end + 1 + size]
        return head, body

    def answer(self, head: dict[str, Any], body: bytes) -> dict[str, Any]:
        begin = time.perf_counter()
        name = str(head.get("session", ""))
        if name not in self.sessions and len(self.sessions) >= MAX_SESSIONS:
            return {"error": "too many sessions"}
        session = self.sessions.setdefault(name, Session())
        try:
            match head.get("op"):
                case "enrol":
                    self.worker.enrol(session.known, str(head.get("name", "")), decode(body))
                    return {"known": sorted(session.known)}
                case "work":
                    picture = decode(body)
                    found = self.worker.work(session.known, picture)
                    session.count += 1
                    session.seen.update(str(item["name"]) for item in found)
                    session.latest.update({str(item["name"]): item for item in found})
                    session.keep(picture, self.keep_bytes)
                    took_ms = (time.perf_counter() - begin) * 1e3
                    return {"count": session.count, "found": found, "processing_ms": round(took_ms, 2)}
                case "state":
                    return session.state()
                case _:
                    return {"error": "unknown request"}
        except ValueError as error:
            return {"error": str(error)}

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)


def decode(body: bytes) -> Any:
    """The picture as an array, height x width x 3 bytes. ValueError when it is none."""
    try:
        with Image.open(io.BytesIO(body)) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"not a picture: {error}") from error


def serve(worker: Worker) -> None:
    """The service's main loop; says on its output when it begins."""
    port, keep_mb = int(os.environ.get("PORT", "7000")), int(os.environ.get("KEEP_MB", "100"))
    server = Server(port, worker, keep_mb)
    print(f"serving on port {port}, keeping {keep_mb} MB of pictures, pid {os.getpid()}", flush=True)
    server.serve()
