"""Notifications on their way: posted to a subscriber's address, or sent on the websocket that it has open.

A subscriber that is slow or gone costs a bounded queue and nobody else's time: each has a worker of its own that ends
when it has nothing to do, what a full queue cannot take is dropped, the oldest first, and no host has more than a few
connections at once (see `lanes`). A host is known by its address, by whatever names it is called: names cost nothing.
Who answers for names may be slow, too, so they have lanes of their own.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from functools import cached_property

import httpcore
import structlog

from whimbrel.controller.mec.lanes import Lanes
from whimbrel.controller.mec.reach import RESOLVE_S, Allowed, To, is_address, place_of, plain, resolved
from whimbrel.controller.mec.waiting import Budget, Waiting
from whimbrel.controller.planning.complaints import Complaints

TIMEOUT_S = 5.0
ATTEMPTS = 3
AGAIN_AFTER_S = 0.5
IDLE_S = 5.0

log = structlog.get_logger()


@dataclass
class _Outbox:
    waiting: Waiting
    worker: asyncio.Task[None] | None = None


class Deliverer:
    """`post` and `send` never wait. All is called in the event loop."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._budget = Budget()
        self._outboxes: dict[str, _Outbox] = {}
        self._sockets: dict[str, set[Waiting]] = {}
        self._names, self._hosts = Lanes(), Lanes()
        self._complaints = Complaints()

    async def close(self) -> None:
        workers = [one.worker for one in self._outboxes.values() if one.worker is not None]
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self.hang_up()

    def hang_up(self) -> None:
        """End all websockets: the controller stops."""
        for queues in self._sockets.values():
            for queue in queues:
                queue.end()

    # --- by HTTP --------------------------------------------------------------------------------------------
    def post(self, subscription: str, url: str, body: bytes) -> None:
        """In the order of the calls, for each subscription."""
        outbox = self._outboxes.get(subscription)
        if outbox is None:
            outbox = self._outboxes[subscription] = _Outbox(Waiting(self._budget))
        if not outbox.waiting.put(url, body):
            self._complaints.tell(subscription, "subscribers are too slow: the oldest notifications are dropped")
        if outbox.worker is None:
            outbox.worker = asyncio.create_task(self._work(subscription, outbox), name=f"notify {subscription}")

    async def _work(self, subscription: str, outbox: _Outbox) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    item = await outbox.waiting.get()
            except TimeoutError:
                if not outbox.waiting:
                    break
                continue
            if item is not None:
                await self._deliver(subscription, *item)
        del self._outboxes[subscription]

    async def _deliver(self, subscription: str, url: str, body: bytes) -> None:
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(AGAIN_AFTER_S * 2**attempt)
            try:
                address = await self._address_of(url)
                async with self._hosts.turn(str(plain(address)), TIMEOUT_S):
                    status = await self._post(address, url, body)
            except TimeoutError:
                why = "no answer in time"
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

    async def _address_of(self, url: str) -> str:
        """Raises httpcore.ConnectError for one that is not allowed, TimeoutError."""
        host, port = place_of(url)
        if is_address(host):
            return await resolved(host, port, self._allowed)
        async with self._names.turn(host, RESOLVE_S):
            return await resolved(host, port, self._allowed)

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        """Takes 30 ms to load, and most subscribers have none."""
        return httpcore.default_ssl_context()

    async def _post(self, address: str, url: str, body: bytes) -> int:
        """The status; an answer's body is never read, however long it may be."""
        headers = [("Content-Type", "application/json"), ("Host", _host_of(url)), ("Connection", "close")]
        origin = httpcore.URL(url).origin
        certificates = self._certificates if origin.scheme == b"https" else None
        connection = httpcore.AsyncHTTPConnection(origin, ssl_context=certificates, network_backend=To(address))
        try:
            async with connection.stream("POST", url, headers=headers, content=body) as response:
                return response.status
        finally:
            await connection.aclose()

    # --- by websocket ---------------------------------------------------------------------------------------
    def send(self, subscription: str, body: bytes) -> bool:
        """Whether anybody listens there."""
        queues = self._sockets.get(subscription, ())
        for queue in queues:
            queue.put("", body)
        return bool(queues)

    def open(self, subscription: str) -> Waiting:
        """For one websocket; it hangs up when this ends."""
        queue = Waiting(self._budget)
        self._sockets.setdefault(subscription, set()).add(queue)
        return queue

    def opened(self, subscription: str) -> int:
        """How many websockets it has."""
        return len(self._sockets.get(subscription, ()))

    def closed(self, subscription: str, queue: Waiting) -> None:
        queue.clear()
        queues = self._sockets.get(subscription)
        if queues is not None:
            queues.discard(queue)
            if not queues:
                del self._sockets[subscription]

    def forget(self, subscription: str) -> None:
        """It is over: what was not sent yet is still sent, its websockets end."""
        for queue in self._sockets.get(subscription, ()):
            queue.end()


def _host_of(url: str) -> str:
    return url.split("//", 1)[1].split("/", 1)[0].split("?", 1)[0].rpartition("@")[2]
