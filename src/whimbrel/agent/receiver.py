"""A receiving process, as the agent's event loop knows it. It is a child of the nursery, not of the agent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from whimbrel.migrate.nursery import Child, Nursery
from whimbrel.migrate.receiveorder import ReceiveOrder
from whimbrel.model.errors import StepFailed


class ReceivingProcess:
    """`events` is its standard output, from `listen` on."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.pid = child.pid
        self.events = asyncio.StreamReader()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(child.pidfd, self._end)

    def _end(self) -> None:
        self._loop.remove_reader(self._child.pidfd)
        self._ended.set()

    async def listen(self) -> None:
        stdout, self._child.stdout = os.fdopen(self._child.stdout, "rb", buffering=0), -1
        await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self.events), stdout)

    @property
    def ended(self) -> bool:
        return self._ended.is_set() or self._child.ended()

    async def wait(self) -> None:
        await self._ended.wait()

    def close_stdin(self) -> None:
        self._child.close_stdin()

    def kill(self) -> None:
        self._child.kill()

    def close(self) -> None:
        """It has ended, or is to end by itself."""
        if self._child.pidfd >= 0:
            self._loop.remove_reader(self._child.pidfd)
        self._child.close()


async def start_receiver(nursery: Nursery, log_file: Path, order: ReceiveOrder, fds: Sequence[int]) -> ReceivingProcess:
    """With its order, and the descriptors that `ReceiveOrder` counts on; the caller keeps these. `log_file` gets what
    it writes to stderr. Raises StepFailed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, log_file.open("ab") as errors:
        forking = asyncio.ensure_future(
            asyncio.to_thread(nursery.fork, "receive", stderr=errors.fileno(), more=theirs.fileno())
        )
        try:
            child = await asyncio.shield(forking)
        except asyncio.CancelledError:
            await asyncio.wait([forking])  # some milliseconds: it must not be born with nobody to know it
            if forking.exception() is None:
                forking.result().close()  # without an order it ends by itself
            raise
        process = ReceivingProcess(child)
        try:
            await process.listen()
            socket.send_fds(ours, [msgspec.json.encode(order)], list(fds))
        except OSError as error:
            process.close()
            raise StepFailed(f"the receiving process ended before it had its order: {error}") from None
        except BaseException:
            process.close()
            raise
    return process
