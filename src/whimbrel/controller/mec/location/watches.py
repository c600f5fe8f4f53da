"""Subscriptions to places: circles, distances, regular reports. What has been told is the subscription's `state`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from whimbrel.controller.mec.location import models as m
from whimbrel.controller.mec.people import People, distance_m
from whimbrel.controller.mec.subscriptions import Subscription


@dataclass(frozen=True)
class Sights:
    people: People
    place_of: Callable[[str], m.LocationInfo | None]

    def position(self, address: str) -> tuple[float, float] | None:
        user = self.people.named(address)
        return self.people.position(user) if user else None

    def positions(self, addresses: Iterable[str]) -> list[tuple[float, float]]:
        """Of each user once, by however many addresses it is named, and who is there."""
        users = dict.fromkeys(user for address in dict.fromkeys(addresses) if (user := self.people.named(address)))
        return [at for user in users if (at := self.people.position(user)) is not None]

    def terminals(self, addresses: Iterable[str]) -> tuple[m.TerminalLocation, ...]:
        found = []
        for address in dict.fromkeys(addresses):
            user = self.people.named(address)
            place = self.place_of(user) if user else None
            found.append(
                m.TerminalLocation(
                    address=address,
                    location_retrieval_status="Retrieved" if place is not None else "NotRetrieved",
                    current_location=place,
                )
            )
        return tuple(found)


@dataclass
class _Memory:
    """`inside`: what was the case at the last look, by address. `told`: how often each was notified of."""

    inside: dict[str, bool] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    last_s: float = -1e18


def pairs_of(value: m.DistanceNotificationSubscription) -> int:
    """Distances that one look measures, at most."""
    monitored, reference = len(set(value.monitored_address)), len(set(value.reference_address))
    return monitored * reference if reference else monitored * (monitored - 1) // 2


def watch(one: Subscription, sights: Sights, now_s: float) -> m.SubscriptionNotification | None:
    """What there is to tell now, if anything."""
    memory: _Memory = one.state if one.state is not None else _Memory()
    one.state = memory
    if now_s - memory.last_s < one.value.frequency:
        return None
    if isinstance(one.value, m.CircleNotificationSubscription):
        message = _circle(one.value, memory, sights)
    elif isinstance(one.value, m.DistanceNotificationSubscription):
        message = _distance(one.value, memory, sights)
    else:
        message = m.SubscriptionNotification(terminal_location=sights.terminals(one.value.address))
    if message is not None:
        memory.last_s = now_s
    return message


def _circle(
    value: m.CircleNotificationSubscription, memory: _Memory, sights: Sights
) -> m.SubscriptionNotification | None:
    """Those who crossed the circle in the direction that is asked for, since the last look. With `check_immediate` who
    is already there when first seen counts as having crossed it."""
    entering = value.entering_leaving_criteria is m.EnteringLeaving.ENTERING
    crossed = []
    for address in dict.fromkeys(value.address):
        at = sights.position(address)
        if at is None:
            continue
        inside = distance_m(at, (value.latitude, value.longitude)) <= value.radius
        before = memory.inside.get(address, (not inside) if value.check_immediate else inside)
        memory.inside[address] = inside
        if inside != before and inside == entering and _may_tell(value.count, memory, address):
            crossed.append(address)
    if not crossed:
        return None
    return m.SubscriptionNotification(
        terminal_location=sights.terminals(crossed),
        entering_leaving_criteria=value.entering_leaving_criteria,
        is_final_notification=_is_final(value.count, memory, value.address),
    )


def _distance(
    value: m.DistanceNotificationSubscription, memory: _Memory, sights: Sights
) -> m.SubscriptionNotification | None:
    """Once each time that the criterion begins to hold. It is about the monitored users and the reference ones, or,
    where none is named, the monitored ones among themselves."""
    places, others = sights.positions(value.monitored_address), sights.positions(value.reference_address)
    if value.reference_address:
        distances = [distance_m(a, b) for a in places for b in others]
    else:
        distances = [distance_m(a, b) for index, a in enumerate(places) for b in places[:index]]
    if not distances:
        return None
    within = [one <= value.distance for one in distances]
    holds = {
        m.DistanceCriteria.ALL_WITHIN: all(within),
        m.DistanceCriteria.ANY_WITHIN: any(within),
        m.DistanceCriteria.ALL_BEYOND: not any(within),
        m.DistanceCriteria.ANY_BEYOND: not all(within),
    }[value.criteria]
    before = memory.inside.get("", False if value.check_immediate else holds)
    memory.inside[""] = holds
    if not holds or before or not _may_tell(value.count, memory, ""):
        return None
    return m.SubscriptionNotification(
        terminal_location=sights.terminals(value.monitored_address),
        distance_criteria=value.criteria,
        is_final_notification=_is_final(value.count, memory, [""]),
    )


def _may_tell(count: int | msgspec.UnsetType, memory: _Memory, key: str) -> bool:
    if count is not msgspec.UNSET and count and memory.told.get(key, 0) >= count:
        return False
    memory.told[key] = memory.told.get(key, 0) + 1
    return True


def _is_final(count: int | msgspec.UnsetType, memory: _Memory, keys: Iterable[str]) -> bool:
    """Nobody of them can be told of any more."""
    return bool(count) and count is not msgspec.UNSET and all(memory.told.get(key, 0) >= count for key in keys)
