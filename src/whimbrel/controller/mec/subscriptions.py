"""Subscriptions as MEC 009 has them, once for all interfaces: kept over a restart, ended at their deadline with a
notice ahead, and told of what happens by callback or websocket."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from whimbrel.controller.access import Caller
from whimbrel.controller.mec.book import MecBook
from whimbrel.controller.mec.common import (
    ExpiryNotification,
    LinkType,
    SubscriptionLink,
    TestNotification,
    TimeStamp,
    WebsockNotifConfig,
    Wire,
)
from whimbrel.controller.mec.delivery import Deliverer
from whimbrel.controller.mec.http import Problem, caller_of, convert, encode, forbidden, may_see, not_found
from whimbrel.controller.mec.locks import Locks
from whimbrel.controller.mec.reach import Allowed, check_callback
from whimbrel.controller.mec.waiting import Waiting
from whimbrel.model.errors import Refused, WhimbrelError

MOST = 2000
MOST_BYTES = 32 << 20
"""Of all subscriptions of an interface together, as they are kept."""
MOST_SOCKETS = 4
"""Of one subscription."""
NOTICE_S = 10.0
"""So long before its end a subscriber is told of it; at once where it is nearer."""
LOOK_EVERY_S = 0.25

log = structlog.get_logger()


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscription comes to, whatever its kind. `expires_unix_s` 0: never. `notice`: its end is told ahead.
    `owner`: the name of the token that made it."""

    id: str
    kind: str
    href: str
    notify_url: str = ""
    websocket: bool = False
    expires_unix_s: float = 0.0
    notice: bool = True
    owner: str = ""


@dataclass
class Subscription:
    """`value` is the resource as the API shows it; `state` is for whoever evaluates it, and lives as long as the
    controller. `test_waits`: a test notification, for a websocket that is still to be opened. `over`: nothing will be
    told any more, it is to be removed."""

    terms: Terms
    value: Any
    state: Any = None
    noticed: bool = False
    test_waits: bool = False
    over: bool = False


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    terms: Terms
    value: Any


def new_id() -> str:
    return f"sub-{secrets.token_hex(8)}"


class Subscriptions:
    """Of one interface, `api`. `kinds`: the type of the resource of each kind."""

    def __init__(
        self, api: str, kinds: Mapping[str, type[Wire]], book: MecBook, deliverer: Deliverer, allowed: Allowed
    ) -> None:
        self._api, self._kinds, self._book = api, kinds, book
        self._deliverer, self._allowed = deliverer, allowed
        self._all: dict[str, Subscription] = {}
        self._sizes: dict[str, int] = {}
        self._locks = Locks()
        self.on_end: Callable[[Subscription], None] = lambda _: None

    async def load(self) -> None:
        for text in await asyncio.to_thread(self._book.all, self._api):
            row = msgspec.json.decode(text, type=_Row)
            if row.terms.kind in self._kinds:
                value = convert(row.value, self._kinds[row.terms.kind])
                self._all[row.terms.id] = Subscription(row.terms, value)
                self._sizes[row.terms.id] = len(text)

    # `caller`: only what this one may see; None: all.
    def of_kind(self, *kinds: str, caller: Caller | None = None) -> list[Subscription]:
        return [one for one in self.all(caller) if one.terms.kind in kinds]

    def all(self, caller: Caller | None = None) -> list[Subscription]:
        return [one for one in self._all.values() if may_see(caller, one.terms.owner)]

    def get(self, subscription_id: str, *kinds: str, caller: Caller | None = None) -> Subscription:
        """Raises Problem 404."""
        found = self._all.get(subscription_id)
        if found is None or (kinds and found.terms.kind not in kinds) or not may_see(caller, found.terms.owner):
            raise not_found(f"there is no subscription {subscription_id!r}")
        return found

    async def _check_callback(self, url: str) -> None:
        """Raises BadInput, Problem 403."""
        try:
            await check_callback(url, self._allowed)
        except Refused as error:
            raise forbidden(str(error)) from None

    async def put(self, terms: Terms, value: Wire, caller: Caller | None, *, new: bool) -> Subscription:
        """A new one, or another in the place of the one with this id. Raises BadInput, Problem 403, 404 and 429,
        Unreachable (the database is away: nothing has changed)."""
        if terms.notify_url:
            await self._check_callback(terms.notify_url)
        if terms.expires_unix_s and terms.expires_unix_s <= time.time():
            raise Problem(400, "the subscription would be over already: give a deadline that is still to come")
        async with self._locks.of(terms.id):
            owner = caller.name if caller is not None else ""
            if not new:
                owner = self.get(terms.id, caller=caller).terms.owner  # it may be gone meanwhile
            terms = msgspec.structs.replace(terms, owner=owner)
            row = encode(_Row(terms=terms, value=msgspec.to_builtins(value))).decode()
            self._check_room(terms.id, len(row), new=new)
            before = self._sizes.get(terms.id)
            self._sizes[terms.id] = len(row)  # at once: nobody else has this room meanwhile
            try:
                await asyncio.to_thread(self._book.put, self._api, terms.id, row)
            except BaseException:
                self._sizes.pop(terms.id)
                if before is not None:
                    self._sizes[terms.id] = before
                raise
            subscription = self._all[terms.id] = Subscription(terms, value)
            return subscription

    def _check_room(self, subscription_id: str, size_bytes: int, *, new: bool) -> None:
        """Raises Problem 429."""
        if new and len(self._sizes) >= MOST:
            raise Problem(429, f"there are {MOST} subscriptions already: remove one first")
        if sum(self._sizes.values()) - self._sizes.get(subscription_id, 0) + size_bytes > MOST_BYTES:
            raise Problem(429, f"the subscriptions take {MOST_BYTES >> 20} MiB already: remove one first")

    async def remove(self, subscription_id: str, *kinds: str, caller: Caller | None = None) -> None:
        """Raises Problem 404, Unreachable (the database is away: it is still there)."""
        async with self._locks.of(subscription_id):
            subscription = self.get(subscription_id, *kinds, caller=caller)
            await asyncio.to_thread(self._book.remove, self._api, subscription_id)
            del self._all[subscription_id], self._sizes[subscription_id]
            self._deliverer.forget(subscription_id)
            self.on_end(subscription)

    def notify(self, subscription: Subscription, message: Any) -> bool:
        """By websocket where it asked for one and has it open, else to its address. Whether there was a way."""
        terms, body = subscription.terms, encode(message)
        if terms.websocket and self._deliverer.send(terms.id, body):
            return True
        if terms.notify_url:
            self._deliverer.post(terms.id, terms.notify_url, body)
        return bool(terms.notify_url)

    def test(self, subscription: Subscription) -> None:
        """MEC 009, clause 6.12a; where there is only a websocket, once it is open."""
        links = SubscriptionLink(subscription=LinkType(href=subscription.terms.href))
        message = TestNotification(links=links, notification_type="TestNotification")
        subscription.test_waits = not self.notify(subscription, message)

    def opened(self, subscription_id: str) -> None:
        """A websocket of it."""
        subscription = self._all.get(subscription_id)
        if subscription is not None and subscription.test_waits:
            self.test(subscription)

    async def keep(self) -> None:
        """End what is due, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now_s = time.time()
            for one in self.all():
                left_s = one.terms.expires_unix_s - now_s if one.terms.expires_unix_s else math.inf
                if left_s > NOTICE_S and not one.over:
                    continue
                if not one.noticed and not one.over:
                    one.noticed = True
                    self._give_notice(one)
                if left_s <= 0 or one.over:
                    with contextlib.suppress(WhimbrelError):  # the database is away: it ends at the next look
                        await self.remove(one.terms.id)
                        log.info("a subscription is over", id=one.terms.id, kind=one.terms.kind)

    def _give_notice(self, subscription: Subscription) -> None:
        if not subscription.terms.notice:
            return
        message = ExpiryNotification(
            links=SubscriptionLink(subscription=LinkType(href=subscription.terms.href)),
            expiry_deadline=TimeStamp.at(subscription.terms.expires_unix_s),
            time_stamp=TimeStamp.now(),
            notification_type="ExpiryNotification",
        )
        self.notify(subscription, message)


def terms_of(
    subscription_id: str,
    kind: str,
    href: str,
    *,
    callback: str,
    websocket: WebsockNotifConfig | None,
    deadline: TimeStamp | None,
) -> tuple[Terms, WebsockNotifConfig | None]:
    """Of a subscription with MEC 009's common attributes; and what its answer says of the websocket. Raises Problem 400
    where nothing could ever be sent."""
    wants = websocket is not None and websocket.request_websocket_uri
    if not callback and not wants:
        raise Problem(400, "a subscription needs a callbackReference, or websockNotifConfig with requestWebsocketUri")
    terms = Terms(
        id=subscription_id,
        kind=kind,
        href=href,
        notify_url=callback,
        websocket=wants,
        expires_unix_s=deadline.unix_s if deadline is not None else 0.0,
    )
    if not wants:
        return terms, None
    uri = f"ws{href.removeprefix('http')}/websocket"
    return terms, WebsockNotifConfig(websocket_uri=uri, request_websocket_uri=True)


def websocket_routes(prefix: str, subscriptions: Subscriptions, deliverer: Deliverer) -> APIRouter:
    routes = APIRouter(prefix=prefix)

    @routes.websocket("/subscriptions/{subscription_id}/websocket")
    async def notifications(socket: WebSocket, subscription_id: str) -> None:
        """A subscription that asked for a websocket has its notifications here."""
        try:
            found = subscriptions.get(subscription_id, caller=caller_of(socket))
        except Problem:
            found = None
        if found is None or not found.terms.websocket or deliverer.opened(subscription_id) >= MOST_SOCKETS:
            await socket.close(code=1008)
            return
        await socket.accept()
        queue = deliverer.open(subscription_id)
        subscriptions.opened(subscription_id)
        sending = asyncio.create_task(_send(socket, queue))
        try:
            while not sending.done():
                receiving = asyncio.create_task(socket.receive())
                await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():
                    receiving.cancel()
                elif receiving.result()["type"] == "websocket.disconnect":
                    return
        finally:
            deliverer.closed(subscription_id, queue)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    return routes


async def _send(socket: WebSocket, queue: Waiting) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it closed meanwhile
        while (item := await queue.get()) is not None:
            await socket.send_text(item[1].decode())
        await socket.close()
