"""What a region may not be, each in one line that names it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from plan import small_regions as small
from whimbrel.model.edge import Amounts, BaseStation, Link, Observation, Server, Signal, Sizes, User, check_capacity
from whimbrel.model.errors import BadInput
from whimbrel.model.placement import Policy

NAN, INF = float("nan"), float("inf")
AMOUNTS = Amounts(cpus=4, memory_bytes=8e9)


def made(**change: Any) -> Observation:
    values: dict[str, Any] = {
        "servers": (Server(name="s", capacity=AMOUNTS, computing_power=1000.0),),
        "base_stations": (BaseStation(name="b", max_users=2),),
        "links": (Link(a="b", b="s", bandwidth_bps=1e9, rtt_ms=1),),
    }
    return Observation(**{**values, **change})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Server(name="s", capacity=AMOUNTS, computing_power=NAN), "server s: computing_power is nan"),
        (lambda: Server(name="s", capacity=AMOUNTS, computing_power=0.0), "server s: computing_power is 0"),
        (
            lambda: Server(name="s", capacity=Amounts(cpus=-1, memory_bytes=1), computing_power=1.0),
            "server s: cpus is -1",
        ),
        (
            lambda: Server(name="s", capacity=Amounts(cpus=1, memory_bytes=INF), computing_power=1.0),
            "memory_bytes is inf",
        ),
        (
            lambda: Server(name="s", capacity=Amounts(cpus=1, memory_bytes=1e300), computing_power=1.0),
            "out of the possible",
        ),
        (lambda: BaseStation(name="b", max_users=-1), "base station b: max_users is -1"),
        (lambda: BaseStation(name="b", max_users=1, rate_share=0.0), "base station b: rate_share is 0"),
        (lambda: BaseStation(name="b", max_users=1, floor_dbm=NAN), "base station b: floor_dbm is nan"),
        (lambda: Link(a="a", b="b", bandwidth_bps=0.0, rtt_ms=1), "link a - b: bandwidth_bps is 0"),
        (lambda: Link(a="a", b="b", bandwidth_bps=1e6, rtt_ms=-1), "link a - b: rtt_ms is -1"),
        (lambda: Link(a="a", b="b", bandwidth_bps=1e6, rtt_ms=1e12), "link a - b: rtt_ms is 1e+12"),
        (lambda: Link(a="a", b="a", bandwidth_bps=1e6, rtt_ms=1), "from a to itself"),
        (lambda: Signal("b", NAN), "RSSI of base station b: rssi_dbm is nan"),
        (lambda: Signal("b", 9000.0), "RSSI of base station b: rssi_dbm is 9000"),
        (lambda: Signal("b", -60.0, NAN), "predicted_dbm is nan"),
        (lambda: Signal("b", True), "is True, which is no number"),
        (lambda: User(name="u", demand=AMOUNTS, processing_ms=NAN), "user u: processing_ms is nan"),
        (lambda: User(name="u", demand=AMOUNTS, sizes=Sizes(delta_bytes=-1)), "user u: delta_bytes is -1"),
        (lambda: User(name="u", demand=AMOUNTS, signals=(Signal("b", -60), Signal("b", -61))), "user u hears b twice"),
        (lambda: Policy(horizon_s=-1), "policy: horizon_s is -1"),
        (lambda: made(servers=()), "at least one server"),
        (lambda: made(links=()), "base station b has no link to a server"),
        (
            lambda: made(links=(Link(a="b", b="x", bandwidth_bps=1e9, rtt_ms=1),)),
            "there is no server or base station x",
        ),
        (
            lambda: made(links=(*made().links, Link(a="s", b="b", bandwidth_bps=1, rtt_ms=1))),
            "link s - b is there twice",
        ),
        (lambda: made(servers=(*made().servers, *made().servers)), "the region has s twice"),
        (
            lambda: made(users=(User(name="u", demand=AMOUNTS, server="x"),)),
            "its service runs on x, which is no server",
        ),
        (lambda: made(users=(User(name="u", demand=AMOUNTS, base_station="x"),)), "there is no base station x"),
        (lambda: made(users=(User(name="", demand=AMOUNTS),)), "one without a name"),
        (lambda: made(at_s=NAN), "observation: at_s is nan"),
    ],
)
def test_what_cannot_be_is_named(make: Any, says: str) -> None:
    with pytest.raises(BadInput) as raised:
        make()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_base_stations_cannot_be_linked() -> None:
    stations = (BaseStation(name="b", max_users=2), BaseStation(name="c", max_users=2))
    with pytest.raises(BadInput, match="joins two base stations"):
        made(base_stations=stations, links=(Link(a="b", b="c", bandwidth_bps=1e9, rtt_ms=1),))


@pytest.mark.parametrize(
    ("count", "demand", "places", "says"),
    [
        (1, Amounts(cpus=17, memory_bytes=1), 10, "user u0 fits on no server"),
        (30, Amounts(cpus=1, memory_bytes=1), 99, "all services need 30 of CPU, all servers have 28"),
        (4, Amounts(cpus=1, memory_bytes=1), 1, "there are 4 users, all base stations take 3"),
    ],
)
def test_capacity_below_demand(count: int, demand: Amounts, places: int, says: str) -> None:
    users = [small.user(f"u{i}", "", "", {"bs-1": -60.0}, demand=demand) for i in range(count)]
    with pytest.raises(BadInput, match=says):
        check_capacity(small.line(*users, places=places))
    check_capacity(small.line(*users[: max(0, count - 2)], places=99) if count > 1 else small.line())


def test_a_region_survives_the_wire() -> None:
    seen = small.line(small.user("u", "bs-1", "edge-1", {"bs-1": -60.0}))
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Observation) == seen
