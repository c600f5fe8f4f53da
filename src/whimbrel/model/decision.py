"""What the planner decided for one user, why, and what came of it. Times on the wall clock (`_unix_s`), durations in
ms."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class DecisionState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Of pre-migration, migration (T_mig: hold and freeze) and handover; 0: that part does not take place.
    `interruption_ms`: how long the user is without its service, whatever the cause."""

    pre_migration_ms: float = 0.0
    migration_ms: float = 0.0
    handover_ms: float = 0.0
    interruption_ms: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One user's handover, migration, or both. `*_at_unix_s` is when each part was to begin (0: not at all), `began_*`
    when it did; `migration` is the id of the migration's record. `delay_ms`: the end-to-end delay that was expected of
    it. `prediction_error`: |predicted - measured| / measured of T_mig, null where nothing was measured.
    `plan_gap`: how far from optimal the plan may be that it is of (null: nothing is proven), `plan_by` what made it."""

    id: str
    user: str
    service: str
    planner: str
    order: str
    reason: str
    made_unix_s: float
    from_base_station: str
    base_station: str
    from_server: str
    server: str
    delay_ms: float = 0.0
    predicted: Times = Times()
    measured: Times | None = None
    prediction_error: float | None = None
    pre_migration_at_unix_s: float = 0.0
    migration_at_unix_s: float = 0.0
    handover_at_unix_s: float = 0.0
    began_pre_migration_unix_s: float = 0.0
    began_migration_unix_s: float = 0.0
    began_handover_unix_s: float = 0.0
    late_by_ms: float = 0.0
    freeze_ahead_ms: float = 0.0
    plan_gap: float | None = None
    plan_by: str = ""
    migration: str = ""
    state: DecisionState = DecisionState.RUNNING
    error: str = ""
    ended_unix_s: float = 0.0

    @property
    def migrates(self) -> bool:
        return self.server != self.from_server

    @property
    def hands_over(self) -> bool:
        return self.base_station != self.from_base_station


class PlannerSetting(msgspec.Struct, frozen=True, kw_only=True):
    """`order` "" means the planner's own: `coordinated`, or `uncoordinated` for one that is asked only when the radio
    hands over. `paused`: nothing is decided, what runs goes on."""

    planner: str = "orchestrated"
    order: str = ""
    strategy: str = "auto"
    paused: bool = False


class UserStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A user as the monitor knows it. `heard_s_ago` null: no report since the controller started. `delay_ms`: median of
    its last report; `sla`: "" without an agreement, else ``kept`` or ``violated``."""

    user: str
    application: str = ""
    service: str = ""
    state: str = ""
    server: str = ""
    base_station: str = ""
    link: str = ""
    x_m: float | None = None
    y_m: float | None = None
    delay_ms: float | None = None
    max_delay_ms: float = 0.0
    sla: str = ""
    heard_s_ago: float | None = None
    problem: str = ""
