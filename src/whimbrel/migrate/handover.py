"""CRIU's side of a lazy restore: it connects to a socket in its images' folder, sends the pid (inside the container)
and a userfaultfd of each process whose memory is to come, and a last word when all are restored."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
from collections.abc import Callable

from whimbrel.model.errors import StepFailed

RESTORE_FINISHED = 0x52535446
LONGEST_S = 10.0


class LazyHandover:
    """Takes them in a thread of its own. `take` is called with each (pid, userfaultfd); `expected`: how many come.
    `images_fd` is the open folder: a socket's path may be 107 bytes long only, and state folders lie deep."""

    def __init__(self, images_fd: int, expected: int, take: Callable[[int, int], None]) -> None:
        self._expected = expected
        self._take = take
        self._all = threading.Event()
        self._over = False
        self._error = ""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"/proc/self/fd/{images_fd}/lazy-pages.socket")
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._run, name="handover", daemon=True)
        self._thread.start()

    def has_all(self, within_s: float) -> bool:
        """Whether every userfaultfd has come, however far CRIU is otherwise."""
        return self._all.wait(within_s)

    def wait(self) -> None:
        """Until CRIU has said its last word. Raises StepFailed when it does not."""
        self._thread.join(LONGEST_S)
        if not self._over:
            raise StepFailed(f"CRIU did not hand over the restored memory: {self._error or 'no end'}")

    def _run(self) -> None:
        try:
            conn, _ = self._listener.accept()
            self._listener.close()
            with conn:
                self._take_all(conn)
            self._over = True
        except Exception as error:
            self._error = str(error)

    def _take_all(self, conn: socket.socket) -> None:
        taken = 0
        while True:
            word = conn.recv(4, socket.MSG_WAITALL)
            if len(word) < 4:
                raise StepFailed("CRIU closed its connection early")
            if struct.unpack("<I", word)[0] == RESTORE_FINISHED:
                return
            (ns_pid,) = struct.unpack("<i", word)
            if ns_pid < 0:
                continue
            fds = array.array("i")
            _, ancillary, _, _ = conn.recvmsg(1, socket.CMSG_LEN(4))
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(data[:4])
            os.set_blocking(fds[0], False)
            self._take(ns_pid, fds[0])
            taken += 1
            if taken == self._expected:
                self._all.set()
