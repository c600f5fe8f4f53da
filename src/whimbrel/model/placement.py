"""What a planner is told of its aims, and what it answers: who connects where, whose service goes where, and why
not."""

from __future__ import annotations

import math

import msgspec

from whimbrel.model.numbers import check


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How benefit and cost are weighed.

    `horizon_s`: n of (1) is what a user offloads in this time; a move has to pay off within it. `downtime_weight`
    multiplies C of (2). `deadband`: another server must save at least this share of the present delay, so that noise
    moves nobody. `hysteresis_db`: another base station must be that much stronger (relative RSSI hysteresis, the
    paper's [16]), unless the present one falls below its floor. `horizon_s` 0 keeps everybody who can stay.
    `overlaps`: a migration is hidden behind its handover, so that C is the longer of both; else C is their sum.
    `follows`: what of a migration's transfer its handover does not hide follows the resume.
    """

    horizon_s: float = 30.0
    downtime_weight: float = 1.0
    deadband: float = 0.1
    hysteresis_db: float = 4.0
    seed: int = 0
    overlaps: bool = True
    follows: bool = False

    def __post_init__(self) -> None:
        check("policy", "horizon_s", self.horizon_s, 0, 1e6)
        check("policy", "downtime_weight", self.downtime_weight, 0, 1e6)
        check("policy", "deadband", self.deadband, 0, 10)
        check("policy", "hysteresis_db", self.hysteresis_db, 0, 100)


class Delay(msgspec.Struct, frozen=True):
    """The end-to-end delay of one task, eq. (4), ms; queuing is taken to stay as it is."""

    processing_ms: float
    transmission_ms: float
    propagation_ms: float

    @property
    def total_ms(self) -> float:
        return self.processing_ms + self.transmission_ms + self.propagation_ms


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """z_ub's' = 1: `base_station` is b', `server` s'. `gain_ms` is its part of G (1), `downtime_ms` its part of C (2):
    max(`migration_ms`, T_ho), or their sum (`Policy.overlaps`). `from_server` is "" for a service to be deployed."""

    user: str
    base_station: str
    server: str
    from_base_station: str
    from_server: str
    delay: Delay
    gain_ms: float
    downtime_ms: float
    pre_migration_ms: float
    migration_ms: float

    @property
    def migrates(self) -> bool:
        return bool(self.from_server) and self.server != self.from_server

    @property
    def hands_over(self) -> bool:
        return bool(self.from_base_station) and self.base_station != self.from_base_station


class Left(msgspec.Struct, frozen=True):
    """A user for whom there is no place: his service stays where it runs, or is not deployed; `why` is one line."""

    user: str
    why: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`profit_ms` is G - C (3a) as decided on (with the policy's dead band), `bound_ms` proven: no plan that leaves no
    more users has more. `left_at_least`: proven, too. Baselines prove nothing: their bound is infinite. `by`: what
    found it."""

    planner: str
    assignments: tuple[Assignment, ...]
    left: tuple[Left, ...] = ()
    gain_ms: float = 0.0
    cost_ms: float = 0.0
    profit_ms: float = 0.0
    bound_ms: float = float("inf")
    left_at_least: int = 0
    by: str = ""

    @property
    def gap(self) -> float:
        """How far from optimal it may be, as a share of the profit; 0: proven optimal."""
        return relative_gap(self.profit_ms, self.bound_ms)


class PlanFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A plan in figures. `gap` is how far from optimal it may be, as a share of its profit (0: proven optimal), null,
    as `bound_ms`, where nothing is proven; `moves` counts handovers and migrations, `took_ms` the whole plan."""

    planner: str
    by: str
    made_unix_s: float
    took_ms: float
    users: int
    moves: int
    left: int
    left_at_least: int
    gain_ms: float
    cost_ms: float
    profit_ms: float
    bound_ms: float | None
    gap: float | None


def figures_of(plan: Plan, *, made_unix_s: float, took_ms: float) -> PlanFigures:
    proven = math.isfinite(plan.bound_ms) and math.isfinite(plan.gap)
    return PlanFigures(
        planner=plan.planner,
        by=plan.by,
        made_unix_s=made_unix_s,
        took_ms=round(took_ms, 3),
        users=len(plan.assignments) + len(plan.left),
        moves=sum(one.hands_over + one.migrates for one in plan.assignments),
        left=len(plan.left),
        left_at_least=plan.left_at_least,
        gain_ms=plan.gain_ms,
        cost_ms=plan.cost_ms,
        profit_ms=plan.profit_ms,
        bound_ms=plan.bound_ms if proven else None,
        gap=plan.gap if proven else None,
    )


def relative_gap(profit_ms: float, bound_ms: float) -> float:
    """(bound - profit) / |profit|, as MILP solvers define it; below a thousandth of a millisecond nothing is left."""
    missing = bound_ms - profit_ms
    if missing <= 1e-3:
        return 0.0
    return missing / abs(profit_ms) if profit_ms else float("inf")
