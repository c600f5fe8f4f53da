"""Sockets of another process, borrowed for a moment: a descriptor of ours for the same open socket."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SYS_PIDFD_GETFD = 438  # the same number on x86-64 and arm64

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Found:
    """A descriptor of process `pid` that is a socket; `inode` tells it from one that took its number."""

    pid: int
    fd: int
    inode: str


def sockets_of(pid: int) -> Iterator[Found]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    yield Found(pid, int(name), target)


@contextlib.contextmanager
def _borrowed(found: Found, pidfd: int, protocol: int) -> Iterator[socket.socket | None]:
    """Our own descriptor, for the block; None when the socket is gone or of another protocol."""
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
        yield sock if inet and sock.proto == protocol else None


def visit_udp_ports(pids: Iterable[int], action: Callable[[Found, socket.socket], None]) -> None:
    """Do something, once each, with every UDP socket with a port that these processes have. Vanished processes and
    sockets are passed over. Needs ptrace rights; raises PermissionError."""
    seen: set[str] = set()
    for pid in pids:
        # most services have none, and a look at each of their connections takes milliseconds of the freeze
        receiving = _udp_ports(pid)
        for found in sockets_of(pid) if receiving else ():
            if found.inode in receiving and found.inode not in seen:
                seen.add(found.inode)
                visit(found, socket.IPPROTO_UDP, functools.partial(action, found))


def _udp_ports(pid: int) -> set[str]:
    """The UDP sockets that have a port, in the network namespace of `pid`, as `Found.inode` names them."""
    found: set[str] = set()
    for table in ("udp", "udp6"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()
            found.update(f"socket:[{line.split()[9]}]" for line in lines[1:])
    return found


def visit(found: Found, protocol: int, action: Callable[[socket.socket], None]) -> None:
    """Do something with the socket if it is still there and of this protocol (IPPROTO_UDP, IPPROTO_TCP)."""
    try:
        pidfd = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return
    try:
        with _borrowed(found, pidfd, protocol) as sock:
            if sock is not None:
                action(sock)
    finally:
        os.close(pidfd)
