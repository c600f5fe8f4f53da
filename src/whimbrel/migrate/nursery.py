"""Helper processes that start in some milliseconds: forked from one that has everything imported.

Starting a Python with all that a migration's processes need takes half a second of a processor, and a migration that
is asked for at a handover should not wait for it. So an agent keeps one process, the nursery (`nursery_main`), and has
what it needs forked from that. An agent has threads, so nothing can be forked from itself but, before it starts any,
the nursery. A child is the nursery's, not the agent's: the agent knows it by its pidfd.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from whimbrel.migrate import nursery_main
from whimbrel.migrate.nursery_main import ANSWER, STDIO
from whimbrel.model.errors import StepFailed

START_S = 20.0
END_S = 1.0
WAIT_STEP_S = 0.005


class Child:
    """A forked process, and our ends of its standard input and output: descriptors, for others to take over (-1 then).
    `close` when it has ended, or is of no more interest. From any thread."""

    def __init__(self, pid: int, pidfd: int, stdin: int, stdout: int) -> None:
        self.pid, self.pidfd, self.stdin, self.stdout = pid, pidfd, stdin, stdout
        self._gate = threading.Lock()

    def ended(self, within_s: float = 0.0) -> bool:
        """Waits for the end for that long."""
        poll = select.poll()
        with self._gate:
            if self.pidfd < 0:
                return True
            mine = os.dup(self.pidfd)
        try:
            poll.register(mine, select.POLLIN)
            return bool(poll.poll(within_s * 1e3))
        finally:
            os.close(mine)

    def kill(self) -> None:
        with self._gate, suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close_stdin(self) -> None:
        with self._gate:
            self._close("stdin")

    def close(self) -> None:
        """Safe to repeat."""
        with self._gate:
            for name in ("stdin", "stdout", "pidfd"):
                self._close(name)

    def _close(self, name: str) -> None:
        fd = getattr(self, name)
        setattr(self, name, -1)
        if fd >= 0:
            os.close(fd)


class Nursery:
    """All calls may come from any thread; `fork` blocks for some milliseconds, or until a new nursery is ready."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._process: _Forked | subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def start(self) -> int | None:
        """For the very beginning of a process. Forks the nursery from it if it has one thread; else starts a Python for
        it. None; but in the nursery and its children, when they are done, their exit code: leave then."""
        if len(os.listdir("/proc/self/task")) > 1:
            with self._gate:
                self._start()
            return None
        nursery_main.load_compiled()  # for both
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            return nursery_main.run(_alone(theirs))
        theirs.close()
        self._use(ours, _Forked(pid))
        return None

    def fork(self, program: str, *, stderr: int = 2, more: int | None = None) -> Child:
        """Start a program of `nursery_main.PROGRAMS`. `stderr` becomes its standard error; `more` is one more
        descriptor for it. The caller keeps both. Raises StepFailed."""
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        try:
            fds = [theirs_in, theirs_out, stderr] + ([] if more is None else [more])
            with self._gate:
                pid, pidfd = self._ask(program, fds)
        except BaseException:
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        return Child(pid, pidfd, ours_in, ours_out)

    def close(self) -> None:
        """End the nursery, not its children. Safe to repeat."""
        with self._gate:
            self._end()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "whimbrel.migrate.nursery_main", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy starts a thread for each processor
                )
        except BaseException:
            ours.close()
            raise
        return self._use(ours, process)

    def _use(self, ours: socket.socket, process: _Forked | subprocess.Popen[bytes]) -> socket.socket:
        ours.settimeout(START_S)
        self._channel, self._process = ours, process
        return ours

    def _ask(self, program: str, fds: list[int]) -> tuple[int, int]:
        try:
            channel = self._send(program, fds)
            data, children = _answer(channel)
        except OSError as error:
            self._end()
            raise StepFailed(f"the process that starts others did not answer: {error}; see the agent's log") from error
        if len(data) < ANSWER.size:
            self._end()
            raise StepFailed("the process that starts others ended; see the agent's log")
        (pid,) = ANSWER.unpack(data)
        if pid < 0 or not children:
            raise StepFailed(f"no {program} process could be started: {os.strerror(-pid)}")
        return pid, children[0]

    def _send(self, program: str, fds: list[int]) -> socket.socket:
        """To the nursery that is there, or, when that has ended, to a new one."""
        if self._channel is not None:
            with suppress(ConnectionError):
                socket.send_fds(self._channel, [program.encode()], fds)
                return self._channel
            self._end()
        channel = self._start()
        socket.send_fds(channel, [program.encode()], fds)
        return channel

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class _Forked:
    """A process that was forked from this one, as far as `Popen` has to be like it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def wait(self, timeout: float | None = None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while os.waitpid(self._pid, os.WNOHANG if deadline else 0)[0] == 0:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("the nursery", timeout or 0.0)
            time.sleep(WAIT_STEP_S)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)  # not reaped yet: the number is still its own


def _alone(channel: socket.socket) -> socket.socket:
    """In a process that was just forked: a session of its own, nothing open but `channel` and standard error."""
    os.setsid()
    os.chdir("/")
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= STDIO and fd != channel.fileno():
            with suppress(OSError):  # that of the listing is closed already
                os.close(fd)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return channel


def _answer(channel: socket.socket) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    data, ancillary, _, _ = channel.recvmsg(ANSWER.size, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, fds.tolist()
