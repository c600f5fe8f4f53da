"""A receiving process kept ready: starting a Python with all it needs takes most of a second, and a migration that is
asked for at a handover should not wait for it.

The process waits for its order on a socket, and the descriptors that it needs come with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from whimbrel.migrate.receive import ReceiveOrder

log = structlog.get_logger()
REST_S = 2.0  # a fresh one is started when the migration that took the last has the processor no more


@dataclass(frozen=True)
class Waiting:
    """A receiving process without an order; `orders` is our end of its socket."""

    process: asyncio.subprocess.Process
    orders: socket.socket

    def give(self, order: ReceiveOrder, fds: Sequence[int]) -> None:
        """Its work, and the descriptors that `ReceiveOrder` counts on. Raises OSError when it has gone."""
        with self.orders:
            socket.send_fds(self.orders, [msgspec.json.encode(order)], list(fds))


class Spare:
    """One waiting process, replaced some time after it was taken. `log_file` gets what they write to stderr."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._ready: Waiting | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def prepare(self) -> None:
        """Have one ready soon."""
        task = asyncio.create_task(self._refill())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def take(self) -> Waiting:
        """The one that waits, or else a new one. Raises OSError."""
        ready, self._ready = self._ready, None
        self.prepare()
        if ready is not None and ready.process.returncode is None:
            return ready
        return await self._start()

    async def close(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ready is not None:
            self._ready.orders.close()  # it ends by itself
            await self._ready.process.wait()

    async def _refill(self) -> None:
        await asyncio.sleep(REST_S)
        if self._ready is None and not self._closed:
            with contextlib.suppress(OSError):
                self._ready = await self._start()

    async def _start(self) -> Waiting:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, self._log_file.open("ab") as errors:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "whimbrel.migrate.receive", str(theirs.fileno()),
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
                    pass_fds=[theirs.fileno()], start_new_session=True, cwd="/",
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        return Waiting(process, ours)
