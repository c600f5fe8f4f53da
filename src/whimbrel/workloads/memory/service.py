"""The stateful service of the demo, the tests and the benchmark; runs inside the container, stdlib only.

One port number, two protocols:

* UDP: every datagram is sent back unchanged (clients number theirs).
* TCP: one line per request. ``count`` answers ``<requests so far> <writes so far>``; ``digest`` pauses
  the writer and answers ``<writes> <crc32 of all memory>`` (from a thread of its own, so that the other
  users are served meanwhile).

Memory is ``--memory-mb`` of private anonymous pages. Write number *w* (from 1) fills the page
``page_of(w)`` with what *w* and the page's number say, so whoever knows *w* can compute what every byte must be,
from outside (``expected_digest``). Contents are ``words`` (one 64-bit word, ``w << 24 | page``, 512 times: very
compressible), ``text`` (compresses like text) or ``random`` (does not compress). ``--zero-share`` of the pages
are zero whatever is written to them.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import mmap
import os
import random
import select
import selectors
import socket
import struct
import sys
import threading
import time
import zlib

PAGE_BYTES = 4096
WORDS_PER_PAGE = PAGE_BYTES // 8
STRIDE = 7919  # a prime: the walk visits every page before it repeats and never in address order
TICK_S = 0.01
DATAGRAMS_PER_TURN = 64  # so that a burst of datagrams does not keep the TCP users waiting
MAX_LINE_BYTES = 4096
CONTENTS = ("words", "text", "random")
ZERO_PAGE = bytes(PAGE_BYTES)
SPREAD = 2654435761  # Knuth's multiplicative hash: zero pages lie all over the memory, not together
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
TEXT_BYTES = 1 << 16


def page_of(write: int, pages: int) -> int:
    """Page index that write number `write` (from 1) fills."""
    return (write * STRIDE) % pages


def page_bytes(write: int, page: int, contents: str = "words", zero_share: float = 0.0) -> bytes:
    """The 4096 bytes that write number `write` leaves in page number `page`."""
    if zero_share and page * SPREAD % (1 << 32) < zero_share * (1 << 32):
        return ZERO_PAGE
    word = struct.pack("<Q", (write << 24) | page)
    if contents == "words":
        return word * WORDS_PER_PAGE
    if contents == "random":
        return hashlib.shake_128(word).digest(PAGE_BYTES)
    offset = (write * 31 + page * SPREAD) % TEXT_BYTES
    return word + text()[offset : offset + PAGE_BYTES - len(word)]


@functools.cache
def text() -> bytes:
    """Words of invented English, the same each time, with the beginning once more at the end."""
    chance = random.Random(1)
    shorter_first = [2.0**-rank for rank in range(len(LETTERS))]
    words: list[str] = []
    size = 0
    while size < TEXT_BYTES:
        words.append("".join(chance.choices(LETTERS, [w**0.15 for w in shorter_first], k=chance.randint(1, 9))))
        size += len(words[-1]) + 1
    body = " ".join(words).encode()[:TEXT_BYTES]
    return body + body[:PAGE_BYTES]


def usable_pages(memory_mb: int) -> int:
    """Number of pages for a size, made coprime to the stride so that the walk covers all of them."""
    pages = memory_mb * (1 << 20) // PAGE_BYTES
    return pages - 1 if pages % STRIDE == 0 else pages


def expected_digest(writes: int, memory_mb: int, contents: str = "words", zero_share: float = 0.0) -> int:
    """CRC-32 that the memory must have after `writes` writes (0 = the initial fill, which is write 0)."""
    pages = usable_pages(memory_mb)
    last = [0] * pages
    for write in range(max(1, writes - pages + 1), writes + 1):
        last[page_of(write, pages)] = write
    crc = 0
    for page in range(pages):
        crc = zlib.crc32(page_bytes(last[page], page, contents, zero_share), crc)
    return crc


class Memory:
    """The pattern; one writer thread, and a lock that makes `digest` see a moment between two writes."""

    def __init__(self, memory_mb: int, contents: str = "words", zero_share: float = 0.0) -> None:
        self.pages = usable_pages(memory_mb)
        self.contents, self.zero_share = contents, zero_share
        self.lock = threading.Lock()
        self.writes = 0
        self.map = mmap.mmap(-1, memory_mb << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(self.pages):
            self.fill(0, page)

    def fill(self, write: int, page: int) -> None:
        content = page_bytes(write, page, self.contents, self.zero_share)
        self.map[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = content

    def write_next(self) -> None:
        with self.lock:
            write = self.writes + 1
            page = page_of(write, self.pages)
            self.fill(write, page)
            self.writes = write

    def digest(self) -> tuple[int, int]:
        with self.lock, memoryview(self.map) as view:
            return self.writes, zlib.crc32(view[: self.pages * PAGE_BYTES])


def dirty_forever(memory: Memory, pages_per_s: float) -> None:
    """Write at a steady rate; after a pause it goes on at the rate and does not catch up."""
    owed = 0.0
    before = time.monotonic()
    while True:
        time.sleep(TICK_S)
        now = time.monotonic()
        owed = min(owed + (now - before) * pages_per_s, pages_per_s * 10 * TICK_S)
        before = now
        while owed >= 1.0:
            memory.write_next()
            owed -= 1.0


class Server:
    """UDP echo and line-based TCP on one port, one thread, one selector."""

    def __init__(self, port: int, memory: Memory) -> None:
        self.memory = memory
        self.requests = 0
        self.partial: dict[socket.socket, bytes] = {}
        self.selector = selectors.DefaultSelector()
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("0.0.0.0", port))
        self.tcp = socket.create_server(("0.0.0.0", port), backlog=64)
        for sock in (self.udp, self.tcp):
            sock.setblocking(False)
        self.selector.register(self.udp, selectors.EVENT_READ, self.on_datagrams)
        self.selector.register(self.tcp, selectors.EVENT_READ, self.on_connection)

    def on_datagrams(self, _: socket.socket) -> None:
        for _turn in range(DATAGRAMS_PER_TURN):
            try:
                data, peer = self.udp.recvfrom(2048)
            except BlockingIOError:
                return
            self.echo(data, peer)

    def echo(self, data: bytes, peer: tuple[str, int]) -> None:
        """Send back; a full send buffer (the way to the user is being resolved) is waited for, not lost."""
        for _attempt in range(10):
            try:
                self.udp.sendto(data, peer)
                return
            except BlockingIOError:
                select.select([], [self.udp], [], 0.1)
            except OSError:
                return  # no way to this user: the user asks again, the others are served on

    def on_connection(self, listener: socket.socket) -> None:
        try:
            conn, _ = listener.accept()
        except OSError:
            return  # the user left between the handshake and here
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.partial[conn] = b""
        self.selector.register(conn, selectors.EVENT_READ, self.on_request)

    def on_request(self, conn: socket.socket) -> None:
        """Answer every whole line; the connection ends when the user left or sends a line without end."""
        try:
            data = conn.recv(4096)
            *lines, rest = (self.partial[conn] + data).split(b"\n")
            if data and len(rest) <= MAX_LINE_BYTES:
                self.partial[conn] = rest
                for line in lines:
                    self.answer(conn, line.strip())
                return
        except OSError:
            pass
        self.selector.unregister(conn)
        del self.partial[conn]
        conn.close()

    def answer(self, conn: socket.socket, request: bytes) -> None:
        if request == b"count":
            self.requests += 1
            conn.sendall(b"%d %d\n" % (self.requests, self.memory.writes))
        elif request == b"digest":
            threading.Thread(target=self.answer_digest, args=(conn,), daemon=True).start()
        else:
            conn.sendall(b"unknown request\n")

    def answer_digest(self, conn: socket.socket) -> None:
        try:
            conn.sendall(b"%d %d\n" % self.memory.digest())
        except OSError:
            return  # the user did not wait for the answer

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "7000")))
    parser.add_argument("--memory-mb", type=int, default=int(os.environ.get("MEMORY_MB", "200")))
    parser.add_argument("--dirty-pages-per-s", type=float, default=float(os.environ.get("DIRTY_PAGES_PER_S", "500")))
    parser.add_argument("--contents", choices=CONTENTS, default=os.environ.get("CONTENTS", "words"))
    parser.add_argument("--zero-share", type=float, default=float(os.environ.get("ZERO_SHARE", "0")))
    args = parser.parse_args()
    if args.memory_mb < 1:
        parser.error("--memory-mb must be at least 1")
    if args.contents not in CONTENTS:  # argparse does not look at defaults
        parser.error(f"CONTENTS is {args.contents!r}: choose from {', '.join(CONTENTS)}")
    if not 0 <= args.zero_share <= 1:
        parser.error("--zero-share must be from 0 to 1")
    memory = Memory(args.memory_mb, args.contents, args.zero_share)
    if args.dirty_pages_per_s > 0:
        threading.Thread(target=dirty_forever, args=(memory, args.dirty_pages_per_s), daemon=True).start()
    server = Server(args.port, memory)
    print(f"serving on port {args.port} with {args.memory_mb} MB, pid {os.getpid()}", flush=True)
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    main()
