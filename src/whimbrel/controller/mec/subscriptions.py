"""Subscriptions as MEC 009 has them, once for all interfaces: kept over a restart, ended at their deadline with a
notice ahead, and told of what happens by callback or websocket."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

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
from whimbrel.controller.mec.http import Problem, convert, encode, forbidden, not_found
from whimbrel.controller.mec.reach import Allowed, check_url
from whimbrel.model.errors import Refused, WhimbrelError

MOST = 2000
NOTICE_S = 10.0
"""So long before its end a subscriber is told of it; at once where it is nearer."""
LOOK_EVERY_S = 0.25

log = structlog.get_logger()


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscription comes to, whatever its kind. `expires_unix_s` 0: never. `notice`: its end is told ahead."""

    id: str
    kind: str
    href: str
    notify_url: str = ""
    websocket: bool = False
    expires_unix_s: float = 0.0
    notice: bool = True


@dataclass
class Subscription:
    """`value` is the resource as the API shows it; `state` is for whoever evaluates it, and lives as long as the
    controller."""

    terms: Terms
    value: Any
    state: Any = None
    noticed: bool = False


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
        self.on_end: Callable[[Subscription], None] = lambda _: None

    async def load(self) -> None:
        for text in await asyncio.to_thread(self._book.all, self._api):
            row = msgspec.json.decode(text, type=_Row)
            if row.terms.kind in self._kinds:
                value = convert(row.value, self._kinds[row.terms.kind])
                self._all[row.terms.id] = Subscription(row.terms, value)

    def of_kind(self, *kinds: str) -> list[Subscription]:
        return [one for one in self._all.values() if one.terms.kind in kinds]

    def all(self) -> list[Subscription]:
        return list(self._all.values())

    def get(self, subscription_id: str, *kinds: str) -> Subscription:
        """Raises Problem 404."""
        found = self._all.get(subscription_id)
        if found is None or (kinds and found.terms.kind not in kinds):
            raise not_found(f"there is no subscription {subscription_id!r}")
        return found

    def check_callback(self, url: str) -> None:
        """Raises BadInput, Problem 403."""
        try:
            check_url(url, self._allowed)
        except Refused as error:
            raise forbidden(str(error)) from None

    async def put(self, terms: Terms, value: Wire) -> Subscription:
        """A new one, or another in the place of the one with this id. Raises BadInput, Problem 403 and 429."""
        if terms.notify_url:
            self.check_callback(terms.notify_url)
        if terms.expires_unix_s and terms.expires_unix_s <= time.time():
            raise Problem(400, "the subscription would be over already: give a deadline that is still to come")
        if terms.id not in self._all and len(self._all) >= MOST:
            raise Problem(429, f"there are {MOST} subscriptions already: remove one first")
        row = encode(_Row(terms=terms, value=msgspec.to_builtins(value))).decode()
        await asyncio.to_thread(self._book.put, self._api, terms.id, row)
        subscription = self._all[terms.id] = Subscription(terms, value)
        return subscription

    async def remove(self, subscription_id: str, *kinds: str) -> None:
        """Raises Problem 404."""
        subscription = self.get(subscription_id, *kinds)
        del self._all[subscription_id]
        self._deliverer.forget(subscription_id)
        self.on_end(subscription)
        await asyncio.to_thread(self._book.remove, self._api, subscription_id)

    def notify(self, subscription: Subscription, message: Any) -> None:
        """By websocket where it asked for one and has it open, else to its address."""
        terms, body = subscription.terms, encode(message)
        if terms.websocket and self._deliverer.send(terms.id, body):
            return
        if terms.notify_url:
            self._deliverer.post(terms.id, terms.notify_url, body)

    def test(self, subscription: Subscription) -> None:
        """MEC 009, clause 6.12a."""
        links = SubscriptionLink(subscription=LinkType(href=subscription.terms.href))
        self.notify(subscription, TestNotification(links=links, notification_type="TestNotification"))

    async def keep(self) -> None:
        """End what is due, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now_s = time.time()
            for one in self.all():
                left_s = one.terms.expires_unix_s - now_s
                if not one.terms.expires_unix_s or left_s > NOTICE_S:
                    continue
                if not one.noticed:
                    one.noticed = True
                    self._give_notice(one)
                if left_s <= 0:
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
        """Who knows the id of a subscription that asked for a websocket has its notifications here."""
        try:
            found = subscriptions.get(subscription_id)
        except Problem:
            found = None
        if found is None or not found.terms.websocket:
            await socket.close(code=1008)
            return
        await socket.accept()
        queue = deliverer.open(subscription_id)
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


async def _send(socket: WebSocket, queue: asyncio.Queue[bytes | None]) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # it closed meanwhile
        while (body := await queue.get()) is not None:
            await socket.send_text(body.decode())
        await socket.close()
