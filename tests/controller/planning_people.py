"""Nodes, users and reports for the tests of planning."""

from __future__ import annotations

from typing import Any

from whimbrel.controller.views import NodeView
from whimbrel.model.application import Application, Session, SessionState
from whimbrel.model.node import PathStatus, Resources, Role, Tier
from whimbrel.model.radio import DelayFigures, HandoverForecast, Hears, LinkState, UserReport

EDGES, STATIONS = ("edge-1", "edge-2", "cloud"), ("bs-1", "bs-2")


def round_trip_ms(a: str, b: str) -> float:
    """Base stations stand beside the edges of their number, everything else is 50 ms away."""
    return 1.0 if a[-1] == b[-1] else 50.0


def node(name: str, **changes: Any) -> NodeView:
    role = Role.GATEWAY if name.startswith("bs") else Role.EDGE
    paths = [PathStatus(to=other, round_trip_ms=round_trip_ms(name, other), rate_bps=1e8)
             for other in (*EDGES, *STATIONS) if other != name]  # fmt: skip
    values: dict[str, Any] = {
        "name": name, "role": role, "host": "127.0.0.1", "port": 1, "overlay_host": "127.0.0.1", "up": True,
        "resources": Resources(
            cpus=2, load_1min=0, memory_total_bytes=8 << 30, memory_available_bytes=8 << 30,
            disk_available_bytes=1 << 40, stage_available_bytes=1 << 30, cpu_capacity=1.0, computing_power=400.0,
        ),
        "tier": Tier.CLOUD if name == "cloud" else Tier.EDGE, "paths": tuple(paths),
    }  # fmt: skip
    return NodeView(**(values | changes))


def nodes() -> list[NodeView]:
    return [node(name) for name in (*EDGES, *STATIONS)]


def application(**changes: Any) -> Application:
    return Application(**({"name": "app", "image": "oci:/x", "tasks_per_s": 10.0, "memory_bytes": 1e6} | changes))


def session(user: str = "ue-1", **changes: Any) -> Session:
    values = {"user": user, "application": "app", "service": f"app-{user}", "state": SessionState.READY}
    return Session(**(values | changes))


def report(user: str = "ue-1", *, serving: str = "bs-1", **changes: Any) -> UserReport:
    levels = {"bs-1": -50.0, "bs-2": -60.0}
    values: dict[str, Any] = {
        "user": user, "number": 1, "unix_s": 1.7e9, "elapsed_s": 1.0, "x_m": 0.0, "y_m": 0.0, "speed_m_per_s": 1.0,
        "serving": serving, "state": LinkState.CONNECTED,
        "hears": tuple(Hears(base_station=n, rssi_dbm=level, filtered_dbm=level) for n, level in levels.items()),
        "delay": DelayFigures(requests=2, lost=0, mean_ms=5.0, p50_ms=5.0, max_ms=6.0),
    }  # fmt: skip
    return UserReport(**(values | changes))


def forecast(target: str = "bs-2", in_s: float = 3.0, chance: float = 0.9, **changes: Any) -> HandoverForecast:
    values = {"target": target, "median_s": in_s, "early_s": in_s / 2, "late_s": in_s * 2, "chance": chance}
    return HandoverForecast(**(values | {"horizon_s": 20.0, "source": "slope"} | changes))
