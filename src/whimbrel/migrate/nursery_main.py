"""The process from which an agent's helper processes are forked (see `nursery`).

It has imported all that they need and does nothing else: one thread, so that a fork copies no lock that somebody holds;
no descriptor but its end of the socket, so that no child gets what belongs to another. It ends with the agent (the
socket does); its children live on, each by its own rules.

Forked from the agent itself at that one's beginning, or run as ``python -m whimbrel.migrate.nursery_main FD``. It talks
over one end of a SOCK_SEQPACKET pair. Request: a name of `PROGRAMS`, with descriptors: standard input, output and error
of the child, and one more if the program asks for it. Answer: int32 pid, or a negative errno; with the pid a pidfd
comes as SCM_RIGHTS.
"""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from whimbrel.memory import comparing, placing
from whimbrel.migrate import receive, sendfiles
from whimbrel.model.errors import WhimbrelError

PROGRAMS: dict[str, Callable[[], int]] = {"receive": receive.main, "sendfiles": sendfiles.main}
ANSWER = struct.Struct("<i")
MOST_NAME_BYTES = 64
STDIO = 3
MOST_FDS = STDIO + 1


def _reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _request(channel: socket.socket) -> tuple[str, list[int]]:
    fds = array.array("i")
    space = socket.CMSG_SPACE(MOST_FDS * fds.itemsize)
    name, ancillary, _, _ = channel.recvmsg(MOST_NAME_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return name.decode(), fds.tolist()


def _be_child(name: str, fds: list[int]) -> None:
    """The child from here on: a session of its own, its own standard streams, signals as a new program has them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.setsid()
    for number, fd in enumerate(fds[:STDIO]):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.argv = [name, *map(str, fds[STDIO:])]
    _be_called(name)
    gc.enable()


def _be_called(name: str) -> None:
    """Whoever lists processes, or kills them by name, must not take this one for the agent that it was forked from: it
    may hold the memory of a running service."""
    Path("/proc/self/comm").write_text(name)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc_pid_stat(5)
    title = f"whimbrel\0{name}\0".encode()
    if end - start >= len(title):
        ctypes.memmove(start, title.ljust(end - start, b"\0"), end - start)


def serve(channel: socket.socket) -> Callable[[], int] | None:
    """Fork until the agent has gone: None. In each child: its program."""
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        name, fds = _request(channel)
        if not name:
            return None
        answer, children = ANSWER.pack(-errno.EINVAL), []
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # a child stays a zombie until its pidfd is open
        try:
            if name in PROGRAMS and len(fds) >= STDIO:
                pid = os.fork()
                if pid == 0:
                    channel.close()
                    _be_child(name, fds)
                    return PROGRAMS[name]
                answer, children = ANSWER.pack(pid), [os.pidfd_open(pid)]
        except OSError as error:
            answer = ANSWER.pack(-(error.errno or errno.EIO))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            if channel.fileno() >= 0:  # the child has dealt with its own
                for fd in fds:
                    os.close(fd)
        with suppress(OSError):
            socket.send_fds(channel, [answer], children)
        for fd in children:
            os.close(fd)


def load_compiled() -> None:
    """Those parts that fit what is imported here, whatever is installed while the agent runs."""
    for load in (placing.library, comparing.library):
        with suppress(WhimbrelError):  # whoever needs it says what is wrong
            load()


def run(channel: socket.socket) -> int:
    """What this process is for. Returns in the nursery and in each child; the process is to end then."""
    load_compiled()
    gc.collect()
    gc.freeze()  # what is imported stays shared with the children: a collection would write to all of it
    gc.disable()
    _be_called("nursery")
    with channel:
        program = serve(channel)
    try:
        return 0 if program is None else program()
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(run(socket.socket(fileno=int(sys.argv[1]))))
