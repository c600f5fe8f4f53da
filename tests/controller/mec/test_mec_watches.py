"""Circles and distances, look by look: what is told, and when no more."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from mec_server import report_of

from whimbrel.controller.mec.location import models as m
from whimbrel.controller.mec.location import watches
from whimbrel.controller.mec.location.watches import Sights, watch
from whimbrel.controller.mec.people import People, degrees_of
from whimbrel.controller.mec.settings import MecConfig
from whimbrel.controller.mec.subscriptions import Subscription, Terms
from whimbrel.controller.planning.users import Users

CONFIG = MecConfig(cells={"gw-1": "0000001"}, zones={"gw-1": "gw-1"})
PLACE = m.LocationInfo(latitude=(0.0,), longitude=(0.0,), shape=m.POINT)


class Field:
    """Users that stand at `x_m`; one `look` a second."""

    def __init__(self, kind: type[Any], **fields: Any) -> None:
        self._users = Users()
        self._sights = Sights(People(CONFIG, self._users), lambda user: PLACE)
        common = {"callbackReference": {"notifyURL": "http://x"}, "frequency": 0, "trackingAccuracy": 1.0}
        value = msgspec.convert(common | fields, kind)
        self.one = Subscription(Terms(id="s", kind="k", href="h"), value)
        self._now_s = 0.0

    def look(self, *, seconds: float = 1.0, **x_m: float) -> m.SubscriptionNotification | None:
        self._now_s += seconds
        for user, x in x_m.items():
            name = user.replace("_", "-")
            self._users.take(name, report_of(name, x_m=x, y_m=0.0))
        return watch(self.one, self._sights, self._now_s)


def circle(**fields: Any) -> Field:
    latitude, longitude = degrees_of(CONFIG.origin, 1000.0, 0.0)
    common = {"address": ["acr:ue-1"], "latitude": latitude, "longitude": longitude, "radius": 100.0}
    usual = {"enteringLeavingCriteria": "Entering", "checkImmediate": False}
    return Field(m.CircleNotificationSubscription, **(common | usual | fields))


def told(message: m.SubscriptionNotification | None) -> bool:
    return message is not None


def test_entering_is_told_at_each_entrance() -> None:
    field = circle()
    looks = [told(field.look(ue_1=x)) for x in (0, 950, 1000, 0, 1050)]
    assert looks == [False, True, False, False, True]


def test_leaving_is_told_at_each_exit() -> None:
    field = circle(enteringLeavingCriteria="Leaving")
    assert [told(field.look(ue_1=x)) for x in (1000, 0, 0, 1000, 0)] == [False, True, False, False, True]


@pytest.mark.parametrize(("immediate", "first"), [(True, True), (False, False)])
def test_who_is_inside_already_is_told_if_that_is_asked_for(immediate: bool, first: bool) -> None:
    assert told(circle(checkImmediate=immediate).look(ue_1=1000)) is first


def test_a_count_ends_it() -> None:
    field = circle(count=2)
    finals = [message.is_final_notification for x in (0, 1000, 0, 1000, 0, 1000) if (message := field.look(ue_1=x))]
    assert finals == [False, True]


def test_notifications_keep_their_distance_in_time() -> None:
    field = circle(frequency=10)
    assert told(field.look(ue_1=0)) is False
    assert told(field.look(ue_1=1000)) is True
    assert [told(field.look(ue_1=x)) for x in (0, 1000, 0)] == [False] * 3
    assert told(field.look(seconds=10.0, ue_1=0)) is False
    assert told(field.look(ue_1=1000)) is True


def test_nobody_is_told_of_who_is_not_there() -> None:
    assert circle(checkImmediate=True).look() is None


@pytest.mark.parametrize(
    ("criteria", "near", "mixed", "far"),
    [
        ("AllWithinDistance", True, False, False),
        ("AnyWithinDistance", True, True, False),
        ("AllBeyondDistance", False, False, True),
        ("AnyBeyondDistance", False, True, True),
    ],
)
@pytest.mark.parametrize("reference", [True, False])
def test_distances_meet_their_criterion(criteria: str, near: bool, mixed: bool, far: bool, reference: bool) -> None:
    """Of ue-1 to the two others; without a reference, of all pairs."""
    users = (
        {"monitoredAddress": ["ue-1"], "referenceAddress": ["ue-2", "ue-3"]}
        if reference
        else {"monitoredAddress": ["ue-1", "ue-2", "ue-3"]}
    )
    for places, expected in (((0, 10, 20), near), ((0, 10, 900), mixed), ((0, 500, 1000), far)):
        field = Field(
            m.DistanceNotificationSubscription, distance=100.0, criteria=criteria, checkImmediate=True, **users
        )
        names = dict(zip(("ue_1", "ue_2", "ue_3"), places, strict=True))
        assert told(field.look(**names)) is expected
        assert told(field.look(**names)) is False, "it is told when it begins"


def test_each_user_counts_once_by_whatever_names_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(watches, "distance_m", lambda a, b: asked.append((a, b)) or 10.0)
    field = Field(
        m.DistanceNotificationSubscription, distance=100.0, criteria="AllWithinDistance", checkImmediate=True,
        monitoredAddress=["ue-1", "acr:ue-1"] * 500, referenceAddress=["ue-2", "acr:ue-2"] * 500,
    )  # fmt: skip
    message = field.look(ue_1=0, ue_2=10)
    assert message is not None
    assert len(asked) == 1
    assert [one.address for one in message.terminal_location] == ["ue-1", "acr:ue-1"]


@pytest.mark.parametrize(
    ("monitored", "reference", "pairs"), [(3, 0, 3), (1000, 0, 499_500), (50, 50, 2500), (1000, 1000, 1_000_000)]
)
def test_what_a_look_costs_is_known_ahead(monitored: int, reference: int, pairs: int) -> None:
    field = Field(
        m.DistanceNotificationSubscription, distance=1.0, criteria="AnyWithinDistance", checkImmediate=True,
        monitoredAddress=[f"m{n}" for n in range(monitored)], referenceAddress=[f"r{n}" for n in range(reference)],
    )  # fmt: skip
    assert watches.pairs_of(field.one.value) == pairs


def test_regular_reports_come_at_their_interval() -> None:
    field = Field(m.PeriodicNotificationSubscription, address=["ue-1"], requestedAccuracy=10, frequency=3)
    assert [told(field.look(ue_1=0)) for _ in range(7)] == [True, False, False, True, False, False, True]
