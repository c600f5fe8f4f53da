"""The list of a consumer's subscriptions, as MEC 012 and MEC 021 write it."""

from __future__ import annotations

from collections.abc import Sequence

from whimbrel.controller.mec.common import LinkType, ListedSubscription, ListLinks, SubscriptionLinkList
from whimbrel.controller.mec.subscriptions import Subscription


def listed(href: str, subscriptions: Sequence[Subscription]) -> SubscriptionLinkList:
    entries = tuple(ListedSubscription(href=one.terms.href, subscription_type=one.terms.kind) for one in subscriptions)
    return SubscriptionLinkList(links=ListLinks(this=LinkType(href=href), subscription=entries))
