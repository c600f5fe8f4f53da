"""A second hand on the memory of a service that still lacks pages.

When the last descriptor of a userfaultfd closes, the kernel lets every absent page read as zeros: a fault server that
dies would leave a service that runs on with wrong memory, and nobody would know. So the agent, which started the
server, holds a descriptor of each userfaultfd as well. Then a thread of the service that touches an absent page waits
there until the agent has ended it.

They talk over a SOCK_SEQPACKET pair. From the server: ``K`` and a descriptor, keep this; ``W``, all pages are in
place, answered by ``W`` when all descriptors are closed.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket

KEEP, WHOLE = b"K", b"W"
MOST_FDS = 256  # of the agent's 1,024 usual ones: a service may fork without end while its pages arrive


class Keeper:
    """The agent's side. `take` when `fileno` is readable; `close` when the service needs no guard, or is dead."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._fds: list[int] = []

    def fileno(self) -> int:
        return self._ours.fileno()

    def take(self) -> bool:
        """Take in what has come; False when nothing more will."""
        while True:
            fds = array.array("i")
            try:
                word, ancillary, _, _ = self._ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return True
            except OSError:
                return False
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            self._fds.extend(fds)
            while len(self._fds) > MOST_FDS:
                os.close(self._fds.pop())
            if word == WHOLE:
                self._let_go()
                with contextlib.suppress(OSError):
                    self._ours.send(WHOLE)
            elif not word:
                return False

    def _let_go(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def close(self) -> None:
        self._let_go()
        self._ours.close()
        self.theirs.close()


class Kept:
    """The fault server's side, on the descriptor that it inherited."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)

    def close(self) -> None:
        self._sock.close()

    def keep(self, uffd: int) -> None:
        """Never waits: a keeper that is gone, or too busy to listen, is no reason to let the service stand still."""
        with contextlib.suppress(OSError):
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [uffd]))
            self._sock.sendmsg([KEEP], [rights], socket.MSG_DONTWAIT)

    def whole(self) -> None:
        """Returns when the keeper has let go or is gone. Serve faults until then: pages that never existed are absent
        as well, and whoever touches one waits for as long as anybody holds the userfaultfd."""
        with contextlib.suppress(OSError):
            self._sock.send(WHOLE)
            self._sock.recv(1)
