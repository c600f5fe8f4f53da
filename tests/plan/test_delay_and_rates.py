"""Eq. (4) and its rate tables."""

from __future__ import annotations

import numpy as np
import pytest

from whimbrel.model.edge import Link
from whimbrel.model.errors import BadInput
from whimbrel.plan.delay import processing_ms, transmission_ms
from whimbrel.plan.placement.routes import routes
from whimbrel.plan.rates import TABLES, floor_dbm, rate_bps


@pytest.mark.parametrize(
    ("technology", "dbm", "mbits"),
    [
        ("802.11n-20MHz", -82.1, 0), ("802.11n-20MHz", -82, 6.5), ("802.11n-20MHz", -79.5, 6.5),
        ("802.11n-20MHz", -20, 65),
        ("802.11n-40MHz", -79, 13.5), ("802.11n-40MHz", -61, 135),
        ("802.11ac-20MHz", -59, 78), ("802.11ac-40MHz", -54, 180),
        ("802.11ac-80MHz", -76, 29.3), ("802.11ac-80MHz", -58, 292.5), ("802.11ac-80MHz", -50, 390),
        ("lte-10MHz", -103, 0), ("lte-10MHz", -60, 34.99461),
    ],
)  # fmt: skip
def test_the_rate_of_an_rssi(technology: str, dbm: float, mbits: float) -> None:
    assert rate_bps(technology, dbm) == pytest.approx(mbits * 1e6)


@pytest.mark.parametrize("technology", TABLES)
def test_a_stronger_signal_is_never_slower(technology: str) -> None:
    rates = [rate_bps(technology, dbm) for dbm in np.arange(-120, 0, 0.25)]
    assert rates == sorted(rates)
    assert rate_bps(technology, floor_dbm(technology)) > 0
    assert TABLES[technology].source


def test_a_technology_without_a_table_is_named() -> None:
    with pytest.raises(BadInput, match="no rate table '3g'"):
        rate_bps("3g", -60)


def test_twice_the_power_halves_the_processing() -> None:
    assert processing_ms(np.array(30.0), np.array(1000.0), np.array(2000.0)) == 15


@pytest.mark.parametrize(
    ("size", "radio", "wired", "expected"),
    [
        (125_000, 10e6, 1e9, 100),
        (125_000, 1e9, 10e6, 100),
        (125_000, 0, 1e9, np.inf),
        (0, 0, 1e9, np.inf),
        (0, 1e6, 1e9, 0),
    ],
)
def test_the_slower_of_both_links_counts(size: float, radio: float, wired: float, expected: float) -> None:
    assert transmission_ms(np.array(float(size)), np.array(radio), np.array(wired)) == pytest.approx(expected)


def test_ways_follow_the_links() -> None:
    links = [
        Link(a="b1", b="s1", bandwidth_bps=1e9, rtt_ms=1),
        Link(a="s1", b="s2", bandwidth_bps=1e8, rtt_ms=50),
        Link(a="s2", b="s3", bandwidth_bps=2e8, rtt_ms=50),
        Link(a="s1", b="s3", bandwidth_bps=1e6, rtt_ms=150),
    ]
    names = ["b1", "s1", "s2", "s3", "alone"]
    bandwidth_bps, rtt_ms = routes(names, links)
    assert (bandwidth_bps[0, 3], rtt_ms[0, 3]) == (1e8, 101)
    assert (bandwidth_bps[3, 0], rtt_ms[3, 0]) == (1e8, 101)
    assert (bandwidth_bps[0, 4], rtt_ms[0, 4]) == (0, np.inf)
    assert (bandwidth_bps[1, 1], rtt_ms[1, 1]) == (np.inf, 0)
