"""What a client reports of one window of time, whatever the workload."""

from __future__ import annotations

from typing import Any

import msgspec


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`outage_*_ms`: the longest time from sending a request to its answer, minus the median of the quiet phase;
    None when there was nothing to judge by (`outage_udp_ms`: when the workload has no UDP). `lost`: UDP requests
    never answered, and what a service acknowledged and then did not have. `resets`: TCP connections that broke.
    `stalls`: how often a player had nothing to play. `detail`: what else this workload's client saw.
    """

    workload: str = ""
    requests: int
    answered: int
    lost: int
    resets: int
    stalls: int
    outage_tcp_ms: float | None
    outage_udp_ms: float | None
    quiet_median_ms: float | None
    state_ok: bool
    detail: dict[str, Any]


class Settled(msgspec.Struct, frozen=True):
    """Requests that were answered or given up, in the order sent: when sent, when answered (0: never), and how long the
    service says that it worked on it (0: it does not say); nanoseconds of the monotonic clock, as is `now_ns`."""

    now_ns: int
    tcp: tuple[tuple[int, int, int], ...] = ()
    udp: tuple[tuple[int, int, int], ...] = ()


class Spread(msgspec.Struct, frozen=True):
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Noise(msgspec.Struct, frozen=True):
    """What the client measures when nothing moves; `outage_*_ms` are spreads over `windows` of 1 s. None: the
    workload has no UDP."""

    windows: int
    lost: int
    outage_tcp_ms: Spread
    delay_tcp_ms: Spread
    client_late_ms: float
    outage_udp_ms: Spread | None = None
    delay_udp_ms: Spread | None = None
