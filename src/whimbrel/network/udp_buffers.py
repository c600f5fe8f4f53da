"""Room for the burst that a release brings: wider receive buffers on a service's UDP sockets, for a while."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from whimbrel.network.borrowed import Found, visit, visit_udp_ports

SO_RCVBUFFORCE = 33
WIDE_BYTES = 16 << 20  # the kernel doubles what is set, and counts buffer size, not payload


def widen(pids: Iterable[int], size_bytes: int = WIDE_BYTES) -> Callable[[], None]:
    """Give every UDP socket with a port that these processes have a receive buffer of at least `size_bytes`.

    Returns the undo: it puts the former sizes back on the sockets that are still there. No descriptor is
    kept meanwhile, so a port that the program closes is free at once. Needs CAP_NET_ADMIN and ptrace rights;
    raises PermissionError. Vanished processes and sockets are passed over.
    """
    former: dict[str, tuple[Found, int]] = {}

    def undo() -> None:
        for found, size in former.values():
            visit(found, socket.IPPROTO_UDP, lambda sock, size=size: _set(sock, size))  # type: ignore[misc]

    def enlarge(found: Found, sock: socket.socket) -> None:
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if size < size_bytes:
            former[found.inode] = (found, size)
            _set(sock, size_bytes)

    try:
        visit_udp_ports(pids, enlarge)
    except BaseException:
        undo()
        raise
    return undo


def _set(sock: socket.socket, size_bytes: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size_bytes // 2)  # the kernel doubles it
