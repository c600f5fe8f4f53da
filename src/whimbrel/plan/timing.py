"""When to begin pre-migration, migration and handover: figure 2 of `coordinated`. Seconds on the caller's clock.

The interruption is whatever time the service or the radio link is away. One after the other they add up; with the
shorter of the two inside of the longer it is max(T_mig, T_ho). The shorter one is put into the middle of the longer,
so that an error in either prediction has room on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from whimbrel.model.numbers import check

MARGIN = 0.1
"""The paper's error margin: times are taken to be this much longer when something has to be ready by then."""


class Order(StrEnum):
    """Figure 2's timelines. All have the first one's pre-migration and migration; they differ in the handover."""

    UNCOORDINATED = "uncoordinated"
    """The handover comes when the radio wants it and sets off the pre-migration; the migration follows (figure 6 b,
    c)."""
    EARLY = "early"
    """Second timeline: the handover is over before the migration begins."""
    LATE = "late"
    """Third timeline: the handover begins when the migration is over."""
    COORDINATED = "coordinated"
    """Fourth timeline: at the same time."""


@dataclass(frozen=True)
class Durations:
    """Predicted: T_pre-mig and T_mig of eq. (5), T_ho. 0: that part does not take place."""

    pre_migration_s: float
    migration_s: float
    handover_s: float

    def __post_init__(self) -> None:
        for name in ("pre_migration_s", "migration_s", "handover_s"):
            check("timing", name, getattr(self, name), 0.0, 1e6)


@dataclass(frozen=True)
class Timing:
    """t_trig-pre-mig, t_trig-mig, t_trig-ho. `late_by_s`: so much later than it should the migration begins, because
    the pre-migration does not finish sooner; the handover does not wait for it longer than it may."""

    order: Order
    pre_migration_at_s: float
    migration_at_s: float
    handover_at_s: float
    interruption_s: float
    late_by_s: float = 0.0


def trigger(
    order: Order,
    durations: Durations,
    *,
    handover_at_s: float,
    now_s: float,
    latest_handover_s: float | None = None,
    margin: float = MARGIN,
    notice_s: float = 0.0,
) -> Timing:
    """When each part begins.

    `notice_s`: so long before a handover it must be certain that the memory will be across by then, because the last
    order for it must go out.

    `handover_at_s` is when the radio wants the handover (predicted by the RSSI's slope, or known from the path);
    `latest_handover_s` until when it can wait if the memory is not across by then (None: it cannot wait). Nothing
    begins in the past. Raises BadInput for times that are no numbers.
    """
    for name, value in (("handover_at_s", handover_at_s), ("now_s", now_s)):
        check("timing", name, value, -1e12, 1e12)
    check("timing", "margin", margin, 0.0, 10.0)
    check("timing", "notice_s", notice_s, 0.0, 60.0)
    wanted_s = max(handover_at_s, now_s)
    latest_s = wanted_s if latest_handover_s is None else max(wanted_s, latest_handover_s)
    ahead_s = durations.pre_migration_s * (1 + margin)
    if durations.migration_s and durations.handover_s:
        ahead_s += notice_s
    if order is Order.UNCOORDINATED:
        begins_s = wanted_s
        migration_s = max(wanted_s + durations.handover_s, begins_s + durations.pre_migration_s)
        return _timing(order, durations, begins_s, migration_s, wanted_s)
    # where the migration stands to a handover that begins at 0
    offset_s = {
        Order.EARLY: durations.handover_s * (1 + margin),
        Order.LATE: -durations.migration_s * (1 + margin),
        Order.COORDINATED: (durations.handover_s - durations.migration_s) / 2,
    }[order]
    earliest_s = now_s + ahead_s
    late_by_s = max(0.0, earliest_s - (wanted_s + offset_s))
    # the handover waits with the migration, as long as it can
    handover_s = min(wanted_s + late_by_s, latest_s)
    migration_s = max(earliest_s, handover_s + offset_s)
    return _timing(order, durations, migration_s - ahead_s, migration_s, handover_s, late_by_s)


def interruption_s(migration_at_s: float, migration_s: float, handover_at_s: float, handover_s: float) -> float:
    """How long the user is without the service: while it moves, or the radio link is away, or both."""
    overlap_s = min(migration_at_s + migration_s, handover_at_s + handover_s) - max(migration_at_s, handover_at_s)
    return migration_s + handover_s - max(0.0, overlap_s)


def _timing(
    order: Order, durations: Durations, begins_s: float, migration_s: float, handover_s: float, late_by_s: float = 0.0
) -> Timing:
    return Timing(
        order=order,
        pre_migration_at_s=begins_s,
        migration_at_s=migration_s,
        handover_at_s=handover_s,
        interruption_s=interruption_s(migration_s, durations.migration_s, handover_s, durations.handover_s),
        late_by_s=late_by_s,
    )
