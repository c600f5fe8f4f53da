"""Bodies that only mean harm: answered with 400, and the controller goes on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from mec_server import MecServer

from whimbrel.controller.database import parse_database
from whimbrel.controller.handovers.mec012 import Mec012
from whimbrel.controller.mec import subscriptions
from whimbrel.controller.mec.ams import service as ams
from whimbrel.controller.mec.ams.models import (
    MOBILITY,
    MobilityCriteria,
    MobilityProcedureSubscription,
    RegistrationInfo,
    ServiceConsumerId,
)
from whimbrel.controller.mec.book import MecBook
from whimbrel.controller.mec.delivery import Deliverer
from whimbrel.controller.mec.http import MOST_DEPTH, Problem
from whimbrel.controller.mec.location.models import MOST_PAIRS
from whimbrel.controller.mec.reach import Allowed
from whimbrel.controller.store import Database
from whimbrel.model.errors import Unreachable

PATHS = (
    "/amsi/v1/app_mobility_services",
    "/amsi/v1/subscriptions",
    "/rni/v2/subscriptions",
    "/location/v2/subscriptions/distance",
    "/v1/users/ue-1/events",
    "/v1/session",
)
HARMFUL = {
    "lists": b"[" * 600 + b"]" * 600,
    "more lists": b"[" * 100_000,
    "objects": b'{"a":' * 600 + b"1" + b"}" * 600,
    "more objects": b'{"a":' * 40_000,
    "lists where nobody looks": b'{"event":"note","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "no UTF-8": b'{"a": "\xff"}',
    "half": b'{"a"',
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_body_that_means_harm_is_a_bad_request(server: MecServer, http: httpx.Client, what: str) -> None:
    for path in PATHS:
        answer = http.post(path, content=HARMFUL[what], headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, f"{path}: {answer.text}"
    assert http.get("/v1/health").status_code == 200
    assert "a request failed unexpectedly" not in server.log.read_text()


def test_what_has_a_sensible_depth_is_read(http: httpx.Client) -> None:
    def post(depth: int) -> httpx.Response:
        body = b'{"serviceConsumerId": {"appInstanceId": "one"}, "more": ' + b"[" * depth + b"]" * depth + b"}"
        return http.post("/amsi/v1/app_mobility_services", content=body, headers={"Content-Type": "application/json"})

    made = post(MOST_DEPTH - 1)
    assert made.status_code == 201, made.text
    http.delete(made.headers["Location"])
    refused = post(MOST_DEPTH)
    assert refused.status_code == 400
    assert f"more than {MOST_DEPTH}" in refused.text


def test_a_notification_that_means_harm_is_passed_over() -> None:
    told: list[object] = []
    port = Mec012(told.append, {"rnis": "http://127.0.0.1:9", "users": {}, "cells": {}})
    for body in HARMFUL.values():
        port.take(body)
    port.take(b'{"notificationType": "CellChangeNotification", "x": ' + b"[" * 50_000)
    assert told == []


def distance_of(users: int) -> dict[str, Any]:
    return {
        "distanceNotificationSubscription": {
            "callbackReference": {"notifyURL": "http://127.0.0.1:9/"}, "frequency": 1, "trackingAccuracy": 1,
            "monitoredAddress": [f"acr:m{n}" for n in range(users)], "distance": 10, "checkImmediate": False,
            "referenceAddress": [f"acr:r{n}" for n in range(users)], "criteria": "AllWithinDistance",
        }
    }  # fmt: skip


def test_more_distances_than_can_be_measured_are_refused(http: httpx.Client) -> None:
    path = "/location/v2/subscriptions/distance"
    refused = http.post(path, json=distance_of(51))
    assert refused.status_code == 400
    assert str(MOST_PAIRS) in refused.text
    made = http.post(path, json=distance_of(50))
    assert made.status_code == 201, made.text
    assert http.delete(made.headers["Location"]).status_code == 204


def test_a_realm_of_interest_that_nobody_has_is_refused(http: httpx.Client) -> None:
    value = {"callbackReference": {"notifyURL": "http://127.0.0.1:9/"}, "zoneId": "north"}
    path = "/location/v2/subscriptions/zonalTraffic"
    refused = http.post(path, json={"zonalTrafficSubscription": value | {"interestRealm": ["trams"]}})
    assert refused.status_code == 400
    assert "interestRealm" in refused.text
    made = http.post(path, json={"zonalTrafficSubscription": value})
    assert made.status_code == 201, made.text
    assert http.delete(made.headers["Location"]).status_code == 204


async def test_registrations_and_subscriptions_have_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them together; what is changed makes room for itself."""
    url = parse_database("", tmp_path / "c.sqlite3")
    database = Database(url)
    book = MecBook(database)
    monkeypatch.setattr(ams, "MOST_REGISTRATION_BYTES", 9000)
    monkeypatch.setattr(subscriptions, "MOST_BYTES", 9000)

    def info(name: str, size: int = 4000) -> RegistrationInfo:
        consumer = ServiceConsumerId(app_instance_id="x" * size)
        return RegistrationInfo(service_consumer_id=consumer, app_mobility_service_id=name)

    registrations = ams.Registrations(book)
    await registrations.add(info("a"), None)
    await registrations.add(info("b"), None)
    with pytest.raises(Problem, match="MiB") as refused:
        await registrations.add(info("c"), None)
    assert refused.value.status == 429
    await registrations.change(info("b", 4001), None)
    await registrations.remove("a")
    await registrations.add(info("c"), None)
    again = ams.Registrations(book)
    await again.load()
    with pytest.raises(Problem, match="MiB"):
        await again.add(info("d"), None)

    kept = subscriptions.Subscriptions("ams", ams.kinds(), book, Deliverer(Allowed()), Allowed())

    def value(size: int = 4000) -> MobilityProcedureSubscription:
        criteria = MobilityCriteria(app_instance_id="x" * size)
        return MobilityProcedureSubscription(filter_criteria=criteria, subscription_type=MOBILITY)

    def terms(name: str) -> subscriptions.Terms:
        return subscriptions.Terms(id=name, kind=MOBILITY, href="h", websocket=True)

    await kept.put(terms("a"), value(), None, new=True)
    await kept.put(terms("b"), value(), None, new=True)
    with pytest.raises(Problem, match="MiB"):
        await kept.put(terms("c"), value(), None, new=True)
    await kept.put(terms("b"), value(4001), None, new=False)
    await kept.remove("a")
    await kept.put(terms("c"), value(), None, new=True)
    database.close()


class Away(MecBook):
    """A database that is away now and then."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.away = False

    def put(self, kind: str, entry_id: str, record: str) -> None:
        self._check()
        super().put(kind, entry_id, record)

    def remove(self, kind: str, entry_id: str) -> None:
        self._check()
        super().remove(kind, entry_id)

    def _check(self) -> None:
        if self.away:
            raise Unreachable("the database is away")


async def test_what_is_kept_and_what_is_known_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the database is away, and where a subscription or a registration is changed while it is removed."""
    now_s = time.time()
    database = Database(parse_database("", tmp_path / "c.sqlite3"))
    book = Away(database)
    kept = subscriptions.Subscriptions("ams", ams.kinds(), book, Deliverer(Allowed()), Allowed())
    value = MobilityProcedureSubscription(filter_criteria=MobilityCriteria(), subscription_type=MOBILITY)

    def terms(name: str) -> subscriptions.Terms:
        return subscriptions.Terms(id=name, kind=MOBILITY, href="h", websocket=True)

    def in_both() -> set[str]:
        known = {one.terms.id for one in kept.all()}
        assert len(book.all("ams")) == len(known)
        return known

    await kept.put(terms("a"), value, None, new=True)
    book.away = True
    with pytest.raises(Unreachable):
        await kept.put(terms("b"), value, None, new=True)
    with pytest.raises(Unreachable):
        await kept.remove("a")
    assert in_both() == {"a"}
    book.away = False
    removed, changed = await asyncio.gather(
        kept.remove("a"), kept.put(terms("a"), value, None, new=False), return_exceptions=True
    )
    assert removed is None
    assert isinstance(changed, Problem)
    assert changed.status == 404
    assert in_both() == set()

    registrations = ams.Registrations(book)
    await registrations.load()
    consumer = ServiceConsumerId(app_instance_id="x")

    def info(name: str) -> RegistrationInfo:
        return RegistrationInfo(service_consumer_id=consumer, app_mobility_service_id=name, expiry_time=1)

    async def registered() -> set[str]:
        """As known, and as the next controller would know them."""
        again = ams.Registrations(book)
        await again.load()
        assert registrations.all() == again.all()
        return {one.app_mobility_service_id for one in again.all()}

    await registrations.add(info("a"), None)
    book.away = True
    with pytest.raises(Unreachable):
        await registrations.add(info("b"), None)
    with pytest.raises(Unreachable):
        await registrations.remove("a")
    assert await registered() == {"a"}
    book.away = False
    for tasks in (
        (registrations.remove("a"), registrations.change(info("a"), None)),
        (registrations.add(info("a"), None), registrations.add(info("a"), None)),
        (registrations.remove("a"), registrations.remove("a"), registrations.end_what_is_due()),
    ):
        first, second, *_ = await asyncio.gather(*tasks, return_exceptions=True)
        assert not isinstance(first, BaseException)
        assert isinstance(second, Problem)
        await registered()
    assert await registered() == set()

    await registrations.add(info("a"), None)
    lasting = RegistrationInfo(service_consumer_id=consumer, app_mobility_service_id="a")
    monkeypatch.setattr(ams.time, "time", lambda: now_s + 10)
    changed, ended = await asyncio.gather(registrations.change(lasting, None), registrations.end_what_is_due())
    assert (await registered(), ended) == ({"a"}, None), "it was registered for longer while its end was due"
    database.close()
