"""The tracker's side of the guardian process (see `guardian_main`)."""

from __future__ import annotations

import array
import errno
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from whimbrel.memory.guardian_main import ANSWER, REQUEST

_ANSWER_TIMEOUT_S = 5.0
_SOURCE = Path(__file__).parents[2]
_START = (
    "import sys; sys.path.append(sys.argv[1]); from whimbrel.memory.guardian_main import main; main(int(sys.argv[2]))"
)


class AttachError(Exception):
    """A process could not be attached to. `number` is an errno: ESRCH it is gone, EPERM somebody traces
    it."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors. Not `socket.recv_fds`: that ignores flags, and so leaks to a program
    that another thread starts meanwhile."""
    fds = array.array("i")
    answer, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return answer, fds.tolist()


class Guardian:
    """One guardian process, started at once (it takes some 20 ms to be ready) and again when needed.

    Not for two threads at a time.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._start()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, str(_SOURCE), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.settimeout(_ANSWER_TIMEOUT_S)
        self._channel = ours
        return ours

    def userfaultfd_of(self, pid: int) -> tuple[int, float]:
        """(a userfaultfd of that process, ms that one of its threads stood still). Raises AttachError."""
        channel = self._channel or self._start()
        try:
            channel.send(REQUEST.pack(pid))
            answer, fds = _receive(channel)
        except OSError as error:
            self.close()
            raise AttachError(error.errno or errno.ETIMEDOUT, f"no answer from the guardian: {error}") from error
        if len(answer) < ANSWER.size:
            self.close()
            raise AttachError(errno.EPIPE, "the guardian process ended")
        number, stopped_ns = ANSWER.unpack_from(answer)
        if number or not fds:
            for fd in fds:
                os.close(fd)
            if number == errno.ETIMEDOUT:
                self.close()
            raise AttachError(number or errno.EIO, answer[ANSWER.size :].decode(errors="replace"))
        return fds[0], stopped_ns / 1e6

    def close(self) -> None:
        """Lets the guardian finish and end; safe to repeat."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            # One that waits for a frozen target ends by itself when that thaws; it must not be killed
            # meanwhile.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process = None
