"""Undo of what CRIU leaves when it is killed while it holds TCP connections."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable

from whimbrel.network.borrowed import sockets_of, visit

TCP_REPAIR = 19
REPAIR_OFF = 0  # with a window probe, so that the peer says what it has seen


def leave_repair_mode(pids: Iterable[int]) -> int:
    """Take every TCP socket of these processes out of repair mode; returns how many were in it.

    CRIU switches it on to read a connection's state. In it a socket sends nothing and refuses to be read (EPERM),
    so a service that is let run with it closes its connections. Needs CAP_NET_ADMIN and ptrace rights.
    """
    left = 0

    def leave(sock: socket.socket) -> None:
        nonlocal left
        with contextlib.suppress(OSError):  # a listening socket knows no repair mode
            if sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF)
                left += 1

    seen: set[str] = set()
    for pid in pids:
        for found in sockets_of(pid):
            if found.inode not in seen:
                seen.add(found.inode)
                visit(found, socket.IPPROTO_TCP, leave)
    return left
