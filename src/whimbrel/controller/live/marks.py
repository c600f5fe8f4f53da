"""From what nodes, services and users said to what a map shows of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from whimbrel.controller.live.views import NodeMark, ServiceMark, StationMark, UserMark
from whimbrel.controller.places import Cell, Place
from whimbrel.controller.planning.users import UserState
from whimbrel.controller.views import NodeView
from whimbrel.model.application import Session
from whimbrel.model.node import Resources
from whimbrel.model.radio import UserReport
from whimbrel.model.service import ServiceStatus


def node_mark(node: NodeView, place: Place | None) -> NodeMark:
    free = node.resources
    memory_used, memory_total = _memory(free)
    return NodeMark(
        name=node.name,
        role=node.role,
        tier=node.tier,
        up=node.up,
        error=node.error,
        x_m=place.x_m if place is not None else None,
        y_m=place.y_m if place is not None else None,
        services=node.services,
        cpu_percent=round(100 * free.cpus_used / free.cpu_capacity, 1) if free and free.cpu_capacity > 0 else None,
        memory_used_bytes=memory_used,
        memory_total_bytes=memory_total,
        disk_used_bytes=max(0, free.disk_total_bytes - free.disk_available_bytes)
        if free and free.disk_total_bytes
        else None,
        disk_total_bytes=free.disk_total_bytes if free and free.disk_total_bytes else None,
        bps_in=free.network_received_bps if free else None,
        bps_out=free.network_sent_bps if free else None,
    )


def _memory(free: Resources | None) -> tuple[int | None, int | None]:
    """Used and total: what services may take and take, else the machine's."""
    if free is None:
        return None, None
    if free.memory_capacity_bytes:
        return free.memory_used_bytes, free.memory_capacity_bytes
    return max(0, free.memory_total_bytes - free.memory_available_bytes), free.memory_total_bytes


def station_mark(cell: Cell) -> StationMark:
    return StationMark(
        name=cell.name,
        gateway=cell.gateway,
        zone=cell.zone,
        x_m=cell.place.x_m if cell.place is not None else None,
        y_m=cell.place.y_m if cell.place is not None else None,
        reach_m=cell.reach_m,
    )


def service_mark(status: ServiceStatus) -> ServiceMark:
    return ServiceMark(
        name=status.spec.name,
        node=status.node,
        address=status.spec.address,
        workload=status.spec.workload,
        state=status.state,
        engine=status.spec.engine,
        image=status.spec.image,
    )


def user_mark(state: UserState, session: Session | None, now_s: float, now_unix_s: float) -> UserMark:
    """Of a user that has reported. `now_s`: the monotonic clock, by which it is known when that was."""
    report = state.report
    assert report is not None
    return UserMark(
        name=state.name,
        x_m=known(report.x_m),
        y_m=known(report.y_m),
        serving=report.serving,
        state=report.state.value,
        rssi_dbm=heard(report),
        delay_ms=state.delay_ms,
        application=session.application if session is not None else "",
        service=session.service if session is not None else "",
        seen_unix_s=round(now_unix_s - (now_s - state.heard_s), 3),
    )


def heard(report: UserReport) -> float | None:
    """RSSI of the serving base station, in dBm."""
    return next((one.rssi_dbm for one in report.hears if one.base_station == report.serving), None)


def known(length_m: float) -> float | None:
    return length_m if math.isfinite(length_m) else None


def by_gateway(cells: Iterable[Cell]) -> Mapping[str, Cell]:
    return {cell.gateway: cell for cell in cells}
