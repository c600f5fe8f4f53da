"""When a user will be handed over, from its own report. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from whimbrel.model.edge import LEAST_DBM, MOST_DBM
from whimbrel.model.numbers import wrong
from whimbrel.model.radio import HandoverForecast, LinkState, UserReport

LIKELY = 0.5
"""A handover less likely than this, within the forecast's horizon, is not planned for."""
PATIENCE_S = 5.0
LONG_PATIENCE_S = 60.0
"""So much later than it would like to can a user be handed over, if its service needs the time: the long one while
its base station is heard as well as this."""
LOUD_DBM = -75.0
"""Some dB above the level at which 802.11 and LTE still carry something at their lowest rate."""


@dataclass(frozen=True)
class Due:
    """A handover away from `source`; the radio would go to `target` in `in_s`, and can wait until `latest_s`, both from
    now. `wanted`: it would go now. `why` for the record. `levels_dbm`: what is forecast to be heard then."""

    source: str
    target: str
    in_s: float
    latest_s: float
    why: str
    wanted: bool = False
    levels_dbm: Mapping[str, float] = field(default_factory=dict)


def patience_s(report: UserReport) -> float:
    """How long a user can stay where it is, when nothing but its service's time is against it."""
    level = next((one.filtered_dbm for one in report.hears if one.base_station == report.serving), -math.inf)
    return LONG_PATIENCE_S if level >= LOUD_DBM else PATIENCE_S


def due_of(report: UserReport, age_s: float, *, ahead: bool) -> Due | None:
    """The handover that a report of `age_s` ago calls for; `ahead`: one that is still to come counts, too."""
    if report.state is not LinkState.CONNECTED or not report.serving:
        return None
    can_wait_s = patience_s(report)
    if report.wants and report.wants != report.serving:
        return Due(report.serving, report.wants, 0.0, can_wait_s, f"the radio hands over to {report.wants}", True)
    forecast = report.forecast
    if not ahead or forecast is None or not _usable(forecast) or forecast.target == report.serving:
        return None
    in_s = max(0.0, forecast.median_s - age_s)
    latest_s = max(in_s, forecast.late_s - age_s) + can_wait_s
    why = f"a handover to {forecast.target} is forecast in {in_s:.1f} s (chance {forecast.chance:.0%})"
    levels = {name: dbm for name, dbm in forecast.levels_dbm.items() if not wrong(dbm, LEAST_DBM, MOST_DBM)}
    return Due(report.serving, forecast.target, in_s, latest_s, why, levels_dbm=levels)


def _usable(forecast: HandoverForecast) -> bool:
    times = (forecast.median_s, forecast.early_s, forecast.late_s)
    return not any(wrong(each, 0, 3600) for each in times) and LIKELY <= forecast.chance <= 1
