"""What the three interfaces share on the wire: MEC 009's links, times, websockets and notices."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec

Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]


class Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A value as the specifications name it; what is not said is left out, what is not known is passed over."""


class LinkType(Wire, frozen=True, kw_only=True):
    href: Text


class SelfLink(Wire, frozen=True, kw_only=True):
    """`_links` of a subscription."""

    this: LinkType = msgspec.field(name="self")


class SubscriptionLink(Wire, frozen=True, kw_only=True):
    """`_links` of a notification."""

    subscription: LinkType


class TimeStamp(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    seconds: Seconds
    nano_seconds: Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]

    @classmethod
    def at(cls, unix_s: float) -> TimeStamp:
        seconds, part = divmod(max(0.0, min(unix_s, 2.0**31 - 1)), 1)
        return cls(seconds=int(seconds), nano_seconds=int(part * 1e9))

    @classmethod
    def now(cls) -> TimeStamp:
        return cls.at(time.time())

    @property
    def unix_s(self) -> float:
        return self.seconds + self.nano_seconds / 1e9


class WebsockNotifConfig(Wire, frozen=True, kw_only=True):
    websocket_uri: str = ""
    request_websocket_uri: bool = False


class ListedSubscription(Wire, frozen=True, kw_only=True):
    href: str
    subscription_type: str


class ListLinks(Wire, frozen=True, kw_only=True):
    this: LinkType = msgspec.field(name="self")
    subscription: tuple[ListedSubscription, ...] = ()


class SubscriptionLinkList(Wire, frozen=True, kw_only=True):
    links: ListLinks = msgspec.field(name="_links")


class ExpiryNotification(Wire, frozen=True, kw_only=True):
    """The subscription ends at `expiry_deadline`, soon."""

    links: SubscriptionLink = msgspec.field(name="_links")
    expiry_deadline: TimeStamp
    time_stamp: TimeStamp
    notification_type: str


class TestNotification(Wire, frozen=True, kw_only=True):
    links: SubscriptionLink = msgspec.field(name="_links")
    notification_type: str


class TerminationLinks(Wire, frozen=True, kw_only=True):
    subscription: LinkType
    confirm_termination: LinkType | None = None


class AppTerminationNotification(Wire, frozen=True, kw_only=True):
    """MEC 011: an application instance is stopped."""

    notification_type: str
    operation_action: str
    max_graceful_timeout: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    links: TerminationLinks = msgspec.field(name="_links")
