"""The ways that users came, as a picture of the region has them."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from planning_people import report

from fakes import FakeRegion
from live_controller import LiveController
from whimbrel.controller.live.samples import MOST_SAMPLES, Samples
from whimbrel.controller.live.ways import MOST_POINTS, MOST_TOLD, Way, told


def test_a_way_is_kept_whole_however_long_it_is() -> None:
    way = Way()
    for step in range(10_000):
        way.go(float(step), 0.0)
        way.go(float(step), math.nan)
    assert way.points[0] == (0.0, 0.0)
    assert way.points[-1][0] > 9_800
    assert MOST_POINTS / 2 <= len(way.points) <= MOST_POINTS
    steps = [b[0] - a[0] for a, b in zip(way.points, way.points[1:], strict=False)]
    assert max(steps) < 400


def test_the_ways_of_many_are_told_coarsely() -> None:
    ways = {}
    for number in range(1000):
        ways[f"ue-{number}"] = way = Way()
        for step in range(100):
            way.go(float(step), float(number))
    ways["still"] = Way()
    ways["still"].go(1.0, 1.0)
    found = told(ways)
    assert sum(map(len, found.values())) <= MOST_TOLD
    assert (found["ue-7"][0], found["ue-7"][-1]) == ((0.0, 7.0), (99.0, 7.0))
    assert "still" not in found


def test_samples_are_kept_for_two_minutes_and_no_longer() -> None:
    kept = Samples()
    for tenth in range(3000):  # ten a second, for five minutes
        kept.take(1000.0 + tenth / 10, 5.0 + tenth, None if tenth == 2990 else -60.0)
    told_s = kept.told()
    assert len(told_s) == MOST_SAMPLES
    times = [unix_s for unix_s, _, _ in told_s]
    assert (times[0], times[-1]) == (1180.0, 1299.0)
    assert all(b - a == pytest.approx(1.0) for a, b in pairwise(times))
    assert told_s[-1] == (1299.0, 2995.0, None)


def test_a_users_samples_are_told(tmp_path: Path) -> None:
    with FakeRegion() as region:
        live = LiveController(region, tmp_path)
        live.start()
        try:
            with live.client() as client:
                client.tell(report("ue-1", serving="bs-1"))
                transport = httpx.HTTPTransport(uds=str(live.socket), verify=False)
                with httpx.Client(transport=transport, base_url="http://c") as http:
                    found = http.get("/v1/users/ue-1/samples").json()
                    nobody = http.get("/v1/users/nobody/samples")
        finally:
            live.stop()
    assert found["user"] == "ue-1"
    ((unix_s, _, rssi_dbm),) = found["samples"]
    assert abs(unix_s - time.time()) < 60
    assert rssi_dbm == -50.0, "of the station that serves it"
    assert nobody.status_code == 404
    assert "nobody" in nobody.json()["detail"]


def test_the_picture_has_the_way_that_a_user_came(tmp_path: Path) -> None:
    with FakeRegion() as region:
        live = LiveController(region, tmp_path)
        live.start()
        try:
            with live.client() as client:
                for number in range(5):
                    client.tell(report("ue-1", serving="gw-1", x_m=10.0 * number, y_m=3.0))
                transport = httpx.HTTPTransport(uds=str(live.socket), verify=False)
                with httpx.Client(transport=transport, base_url="http://c") as http:
                    picture = http.get("/v1/region").json()
        finally:
            live.stop()
    assert picture["ways"] == {"ue-1": [[10.0 * number, 3.0] for number in range(5)]}
