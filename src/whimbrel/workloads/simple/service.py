"""The *Simple* service of paper `coordinated` (V-A): a TCP server that answers each task with an incrementing counter.

One line per request: ``task SESSION`` answers ``<tasks of this session> <tasks of all>``. Sessions outlive their
connections. Runs inside the container, standard library only.
"""

from __future__ import annotations

import os
import selectors
import socket

MAX_LINE_BYTES = 4096
MAX_SESSIONS = 10_000


class Server:
    """One thread, one selector."""

    def __init__(self, port: int) -> None:
        self.counts: dict[bytes, int] = {}
        self.total = 0
        self.partial: dict[socket.socket, bytes] = {}
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
                    conn.sendall(self.answer(line.split()))
                return
        except OSError:
            pass
        self.selector.unregister(conn)
        del self.partial[conn]
        conn.close()

    def answer(self, words: list[bytes]) -> bytes:
        if len(words) != 2 or words[0] != b"task":
            return b"unknown request\n"
        session = words[1]
        if session not in self.counts and len(self.counts) >= MAX_SESSIONS:
            return b"too many sessions\n"
        self.counts[session] = self.counts.get(session, 0) + 1
        self.total += 1
        return b"%d %d\n" % (self.counts[session], self.total)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)


def main() -> None:
    port = int(os.environ.get("PORT", "7000"))
    server = Server(port)
    print(f"serving on port {port}, pid {os.getpid()}", flush=True)
    server.serve()


if __name__ == "__main__":
    main()
