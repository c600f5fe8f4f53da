"""Room for the burst that a release brings: wider receive buffers on a service's UDP sockets, for a while."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SYS_PIDFD_GETFD = 438  # the same number on x86-64 and arm64
SO_RCVBUFFORCE = 33
WIDE_BYTES = 16 << 20  # the kernel doubles what is set, and counts buffer size, not payload

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class _Found:
    pid: int
    fd: int
    inode: str


def _sockets(pid: int) -> Iterator[_Found]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    yield _Found(pid, int(name), target)


@contextlib.contextmanager
def _borrowed(found: _Found, pidfd: int) -> Iterator[socket.socket | None]:
    """Our own descriptor of another process's UDP socket, for the block; None when it is gone or not UDP."""
    fd = int(_libc.syscall(SYS_PIDFD_GETFD, pidfd, found.fd, 0))
    if fd < 0:
        errno = ctypes.get_errno()
        if isinstance(error := OSError(errno, os.strerror(errno)), PermissionError):
            raise error
        yield None
        return
    if Path(f"/proc/self/fd/{fd}").readlink().as_posix() != found.inode:
        os.close(fd)
        yield None
        return
    with socket.socket(fileno=fd) as sock:
        inet = sock.family in (socket.AF_INET, socket.AF_INET6)
        yield sock if inet and sock.proto == socket.IPPROTO_UDP else None


def widen(pids: Iterable[int], size_bytes: int = WIDE_BYTES) -> Callable[[], None]:
    """Give every UDP socket of these processes a receive buffer of at least `size_bytes`.

    Returns the undo: it puts the former sizes back on the sockets that are still there. No descriptor is
    kept meanwhile, so a port that the program closes is free at once. Needs CAP_NET_ADMIN and ptrace rights;
    raises PermissionError. Vanished processes and sockets are passed over.
    """
    former: dict[str, tuple[_Found, int]] = {}

    def undo() -> None:
        for found, size in former.values():
            _visit(found, lambda sock, size=size: _set(sock, size))  # type: ignore[misc]

    def enlarge(found: _Found) -> Callable[[socket.socket], None]:
        def apply(sock: socket.socket) -> None:
            size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            if size < size_bytes:
                former[found.inode] = (found, size)
                _set(sock, size_bytes)

        return apply

    try:
        for pid in pids:
            for found in _sockets(pid):
                if found.inode not in former:
                    _visit(found, enlarge(found))
    except BaseException:
        undo()
        raise
    return undo


def _set(sock: socket.socket, size_bytes: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size_bytes // 2)  # the kernel doubles it


def _visit(found: _Found, action: Callable[[socket.socket], None]) -> None:
    try:
        pidfd = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return
    try:
        with _borrowed(found, pidfd) as sock:
            if sock is not None:
                action(sock)
    finally:
        os.close(pidfd)
