"""The agent's side of the wrapper: wait for the engine to start it, then make it become the CRIU that we want."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from whimbrel.model.errors import Refused, StepFailed
from whimbrel.runtime.engines.wrapper import ARRIVALS, STDIO_BASE

__all__ = ["STDIO_BASE", "Handover", "Hello", "WaitingRoom"]

_MAX_MESSAGE_BYTES = 1 << 16


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What the wrapper says of itself: the placeholder's process, its bundle, runc's root, and where the engine looks
    for the first process; or the arguments of the CRIU that LXC meant to start."""

    placeholder: int = 0
    bundle: str = ""
    root: str = ""
    pid_file: str = ""
    arguments: tuple[str, ...] = ()


class WaitingRoom:
    """A socket where the wrapper of one container reports. An async context manager; `path` is there inside it."""

    def __init__(self, container: str) -> None:
        self.path = Path(ARRIVALS, container)

    async def __aenter__(self) -> WaitingRoom:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)

    async def arrival(self, start: asyncio.Future[Any]) -> tuple[Hello, socket.socket]:
        """The wrapper's word and the connection to it; the caller closes it, which makes the wrapper fail.

        `start`: the engine's own start of the container. When it ends before the wrapper has come, its error is raised;
        should the engine give it up later, whoever waits or restores for it is ended too.
        """
        waiting = asyncio.create_task(self._accept())
        try:
            await asyncio.wait([start, waiting], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await start
                raise Refused("the engine started the container without our wrapper in place of its runtime")
            hello, connection = await waiting
        finally:
            waiting.cancel()
        wrapper = os.pidfd_open(_peer_of(connection))

        def ended(done: asyncio.Future[Any]) -> None:
            with contextlib.suppress(ProcessLookupError):
                if done.cancelled() or done.exception() is not None:
                    signal.pidfd_send_signal(wrapper, signal.SIGKILL)
            os.close(wrapper)

        start.add_done_callback(ended)
        return hello, connection

    async def _accept(self) -> tuple[Hello, socket.socket]:
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(self._listener)
        try:
            connection.setblocking(False)
            return msgspec.json.decode(await loop.sock_recv(connection, _MAX_MESSAGE_BYTES), type=Hello), connection
        except BaseException:
            connection.close()
            raise


def _peer_of(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


class _Elsewhere:
    """A process that is not our child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its real exit code is its parent's to know: 0 stands for "ended"."""
        readable, _, _ = select.select([self._pidfd], [], [], 0)
        return 0 if readable else None

    def wait(self) -> None:
        select.select([self._pidfd], [], [])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Handover:
    """A connection (its descriptor number) to a waiting wrapper, in the process that restores."""

    def __init__(self, descriptor: int) -> None:
        self._connection = socket.socket(fileno=descriptor)
        self._connection.setblocking(True)

    def launch(self, argv: Sequence[str], *, fds: Sequence[int], stderr: int) -> _Elsewhere:
        """Make the wrapper execute `argv` in our mount namespace (a `checkpoint.swrk.Launcher`)."""
        if not all(2 < number < STDIO_BASE for number in fds):
            raise StepFailed(f"descriptors {list(fds)} do not fit below {STDIO_BASE}: too many are open")
        process = _Elsewhere(_peer_of(self._connection))
        here = ["nsenter", f"--mount=/proc/{os.getpid()}/ns/mnt", "--"]
        order = json.dumps({"argv": [*here, *argv], "fds": list(fds), "stderr": stderr}).encode()
        try:
            socket.send_fds(self._connection, [order], [*fds, stderr])
        except OSError as error:
            raise StepFailed(f"the engine gave up waiting for the restore: {error.strerror}") from error
        return process
