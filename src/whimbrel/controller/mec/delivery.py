"""Notifications on their way: posted to a subscriber's address, or sent on the websocket that it has open.

A subscriber that is slow or gone costs a bounded queue and nobody else's time: each has a worker of its own that ends
when it has nothing to do, and what a full queue cannot take is dropped, the oldest first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import httpcore
import structlog

from whimbrel.controller.mec.reach import Allowed, Guard
from whimbrel.controller.planning.complaints import Complaints

QUEUE = 100
AT_ONCE = 20
TIMEOUT_S = 5.0
ATTEMPTS = 3
AGAIN_AFTER_S = 0.5
IDLE_S = 5.0

log = structlog.get_logger()


@dataclass
class _Outbox:
    waiting: deque[tuple[str, bytes]] = field(default_factory=lambda: deque(maxlen=QUEUE))
    news: asyncio.Event = field(default_factory=asyncio.Event)
    worker: asyncio.Task[None] | None = None


class Deliverer:
    """`post` and `send` never wait. All is called in the event loop."""

    def __init__(self, allowed: Allowed) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            network_backend=Guard(allowed), max_connections=AT_ONCE, max_keepalive_connections=0, retries=0
        )
        self._outboxes: dict[str, _Outbox] = {}
        self._sockets: dict[str, set[asyncio.Queue[bytes | None]]] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._complaints = Complaints()

    async def close(self) -> None:
        workers = [one.worker for one in self._outboxes.values() if one.worker is not None]
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self.hang_up()
        await self._pool.aclose()

    def hang_up(self) -> None:
        """End all websockets: the controller stops."""
        for queues in self._sockets.values():
            for queue in queues:
                _put(queue, None)

    # --- by HTTP --------------------------------------------------------------------------------------------
    def post(self, subscription: str, url: str, body: bytes) -> None:
        """In the order of the calls, for each subscription."""
        outbox = self._outboxes.setdefault(subscription, _Outbox())
        if len(outbox.waiting) == QUEUE:
            self._complaints.tell(subscription, "a subscriber is too slow: its oldest notification is dropped")
        outbox.waiting.append((url, body))
        outbox.news.set()
        if outbox.worker is None:
            outbox.worker = asyncio.create_task(self._work(subscription, outbox), name=f"notify {subscription}")

    async def _work(self, subscription: str, outbox: _Outbox) -> None:
        while True:
            while outbox.waiting:
                await self._deliver(subscription, *outbox.waiting.popleft())
            outbox.news.clear()
            try:
                async with asyncio.timeout(IDLE_S):
                    await outbox.news.wait()
            except TimeoutError:
                if not outbox.waiting:
                    break
        del self._outboxes[subscription]

    async def _deliver(self, subscription: str, url: str, body: bytes) -> None:
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(AGAIN_AFTER_S * 2**attempt)
            try:
                async with self._at_once, asyncio.timeout(TIMEOUT_S):
                    status = await self._post(url, body)
            except TimeoutError:
                why = f"no answer within {TIMEOUT_S:g} s"
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
                why = str(error) or type(error).__name__
            except Exception as error:  # a URL that the library cannot send to, or a certificate: the worker lives on
                why = f"{type(error).__name__}: {error}"
                break
            else:
                if status < 300:
                    self._complaints.over(subscription)
                    return
                why = f"it answered with status {status}"  # also a redirection: none is followed
                if status < 500:
                    break
        self._complaints.tell(subscription, f"a notification to {url[:200]} was not delivered: {why}")

    async def _post(self, url: str, body: bytes) -> int:
        """The status; an answer's body is never read, however long it may be."""
        headers = [("Content-Type", "application/json"), ("Host", _host_of(url)), ("Connection", "close")]
        async with self._pool.stream("POST", url, headers=headers, content=body) as response:
            return response.status

    # --- by websocket ---------------------------------------------------------------------------------------
    def send(self, subscription: str, body: bytes) -> bool:
        """Whether anybody listens there."""
        queues = self._sockets.get(subscription, ())
        for queue in queues:
            _put(queue, body)
        return bool(queues)

    def open(self, subscription: str) -> asyncio.Queue[bytes | None]:
        """For one websocket; None in it: hang up."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE)
        self._sockets.setdefault(subscription, set()).add(queue)
        return queue

    def closed(self, subscription: str, queue: asyncio.Queue[bytes | None]) -> None:
        queues = self._sockets.get(subscription)
        if queues is not None:
            queues.discard(queue)
            if not queues:
                del self._sockets[subscription]

    def forget(self, subscription: str) -> None:
        """It is over: what was not sent yet is still sent, its websockets end."""
        for queue in self._sockets.get(subscription, ()):
            _put(queue, None)


def _put(queue: asyncio.Queue[bytes | None], body: bytes | None) -> None:
    """In the place of the oldest where it is full."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(body)


def _host_of(url: str) -> str:
    return url.split("//", 1)[1].split("/", 1)[0].split("?", 1)[0].rpartition("@")[2]
