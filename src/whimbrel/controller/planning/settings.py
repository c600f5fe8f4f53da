"""The sections of the controller's configuration that planning reads.

[planner]                                         # all of it may be left out
planner = "orchestrated"                          # `whimbrel plan planner` lists them; what is chosen there counts
order = ""                                        # coordinated, early, late, uncoordinated; "": the planner's own
strategy = "auto"                                 # of migrations
solver = "timed"                                  # of `orchestrated`; `highs`, `cbc`: see docs/planning.md
solve_s = 0.8                                     # the deadline of a plan
every_s = 1.0                                     # between two plans; events plan at once
handovers = "answers"                             # who carries handovers out, or tells of them; `mec012`: an RNIS
handover_settings = {}                            # of that one; see `handovers.mec012`
policy = { horizon_s = 30.0, deadband = 0.1, hysteresis_db = 4.0 }

[[base_stations]]                                 # gateways without an entry have what is said here
name = "gw-1"
max_users = 1000
technology = "802.11ac-80MHz"
floor_dbm = -82.0                                 # default: the technology's
rate_share = 1.0
x_m = 0.0                                         # for maps; metres from the origin that users report from
y_m = 0.0
reach_m = 250.0
zone = "north"                                    # cells may share one
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from whimbrel.controller.handovers import DEFAULT as DEFAULT_HANDOVERS
from whimbrel.controller.handovers import port_of
from whimbrel.controller.places import Cell, cell_of
from whimbrel.model.decision import PlannerSetting
from whimbrel.model.edge import BaseStation
from whimbrel.model.errors import BadInput
from whimbrel.model.numbers import check
from whimbrel.model.placement import Policy
from whimbrel.plan.planners import DEFAULT, planner_of
from whimbrel.plan.rates import table_of
from whimbrel.plan.strategies import DEFAULT as DEFAULT_STRATEGY
from whimbrel.plan.strategies import names
from whimbrel.plan.timing import Order

MOST_USERS = 1000
DEFAULT_SOLVER = "timed"
SOLVE_S = 0.8
"""Of `every_s`; the rest is for what follows from the plan."""


class PlanningConfig(msgspec.Struct, frozen=True, kw_only=True):
    setting: PlannerSetting = PlannerSetting()
    solver: str = DEFAULT_SOLVER
    solve_s: float = SOLVE_S
    every_s: float = 1.0
    handovers: str = DEFAULT_HANDOVERS
    handover_settings: dict[str, Any] = {}
    policy: Policy = Policy()
    base_stations: tuple[BaseStation, ...] = ()


class PolicyEntry(Policy, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PlannerEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    planner: str = DEFAULT
    order: str = ""
    strategy: str = DEFAULT_STRATEGY
    solver: str = DEFAULT_SOLVER
    solve_s: float = SOLVE_S
    every_s: float = 1.0
    handovers: str = DEFAULT_HANDOVERS
    handover_settings: dict[str, Any] = {}
    policy: PolicyEntry = PolicyEntry()


class StationEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    max_users: int = MOST_USERS
    technology: str = "802.11ac-80MHz"
    floor_dbm: float | None = None
    rate_share: float = 1.0
    x_m: float | None = None
    y_m: float | None = None
    reach_m: float | None = None
    zone: str = ""


def planning_of(entry: PlannerEntry, stations: tuple[StationEntry, ...], gateways: set[str]) -> PlanningConfig:
    """Raises BadInput."""
    if not entry.policy.overlaps:
        raise BadInput("[planner] policy: overlaps follows from the order: set order, not overlaps")
    if entry.policy.follows:
        raise BadInput("[planner] policy: follows comes from order and strategy: set those, not follows")
    setting = check_setting(PlannerSetting(planner=entry.planner, order=entry.order, strategy=entry.strategy))
    check("[planner]", "every_s", entry.every_s, 0.1, 3600.0)
    check("[planner]", "solve_s", entry.solve_s, 0.05, 600.0)
    if entry.solver != DEFAULT_SOLVER:  # here: SciPy would keep every start of a controller waiting
        from whimbrel.solvers.chosen import check as check_solver

        check_solver(entry.solver)
    port_of(entry.handovers)
    for index, station in enumerate(stations):
        if station.name not in gateways:
            raise BadInput(f"base station {station.name}: there is no gateway of that name among the nodes")
        if station.name in {other.name for other in stations[:index]}:
            raise BadInput(f"base station {station.name} is there twice: keep one")
        table_of(station.technology)
    return PlanningConfig(
        setting=setting,
        solver=entry.solver,
        solve_s=entry.solve_s,
        every_s=entry.every_s,
        handovers=entry.handovers,
        handover_settings=entry.handover_settings,
        policy=Policy(**msgspec.structs.asdict(entry.policy)),
        base_stations=tuple(msgspec.convert(station, BaseStation, from_attributes=True) for station in stations),
    )


def cells_of(stations: tuple[StationEntry, ...], gateways: Sequence[str]) -> tuple[Cell, ...]:
    """One of each gateway, in the order of the configuration. Raises BadInput."""
    said = {
        one.name: cell_of(one.name, zone=one.zone, x_m=one.x_m, y_m=one.y_m, reach_m=one.reach_m) for one in stations
    }
    return tuple(said.get(name) or cell_of(name) for name in gateways)


def check_setting(setting: PlannerSetting) -> PlannerSetting:
    """Raises BadInput for a planner, an order or a strategy that there is not."""
    planner_of(setting.planner)
    orders = [order.value for order in Order]
    if setting.order and setting.order not in orders:
        raise BadInput(f"there is no order {setting.order!r}: choose from {', '.join(orders)}")
    if setting.strategy not in names():
        raise BadInput(f"there is no strategy {setting.strategy!r}: choose from {', '.join(names())}")
    return setting
