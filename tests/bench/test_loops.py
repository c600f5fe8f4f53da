"""Parts of the measuring client that need no network."""

from __future__ import annotations

import time

from whimbrel.client import loops
from whimbrel.client.loops import Shared
from whimbrel.client.outage import CounterCheck


def test_counter_goes_up_by_one() -> None:
    check = CounterCheck()
    assert [check.accepts(*pair) for pair in ((41, 0), (42, 3), (43, 3))] == [True] * 3
    assert not check.accepts(43, 4), "a request was counted twice, or the state went back"
    assert check.accepts(44, 4), "judged by the new value from then on"
    assert not check.accepts(46, 4), "skipped one"


def test_writes_never_go_back() -> None:
    check = CounterCheck()
    assert check.accepts(1, 100)
    assert not check.accepts(2, 99)


def test_after_a_broken_connection_the_request_under_way_may_or_may_not_count() -> None:
    for counted in (11, 12):
        check = CounterCheck()
        check.accepts(10, 0)
        check.broken()
        assert check.accepts(counted, 0)
    check = CounterCheck()
    check.accepts(10, 0)
    check.broken()
    assert not check.accepts(13, 0)


def test_trace_finds_the_requests_of_a_span_also_after_the_ring_went_round() -> None:
    shared = Shared()
    count = loops.RING + 100
    base = time.monotonic_ns() - 2 * count
    for number in range(count):
        shared.udp_sent[number % loops.RING] = base + number
        shared.udp_answered[number % loops.RING] = 0 if number == count - 10 else base + number + 1
    shared.head[loops.UDP_SENT] = count
    trace = shared.trace("udp", base + count - 20, base + count - 5)
    assert len(trace.sent_ns) == 15
    assert trace.lost == 1
    assert trace.heard_later
    assert trace.until_ns == base + count - 4
    assert shared.trace("udp", base + count, base + count + 5).sent_ns == []


def test_events_are_counted_by_their_time() -> None:
    shared = Shared()
    for when in (10, 20, 30):
        shared.event(loops.TCP_RESETS, shared.resets_ns, when)
    assert shared.events_between(loops.TCP_RESETS, shared.resets_ns, 15, 31) == 2
