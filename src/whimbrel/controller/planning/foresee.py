"""Handovers to come of users that forecast none themselves: those of whom only the network tells, as an ETSI MEC 012
service does. The rule is the one that users have (`ran.forecast.by_slope`), on levels that are followed here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from whimbrel.model.edge import BaseStation
from whimbrel.model.radio import HandoverForecast, LinkState, UserReport
from whimbrel.plan.rates import floor_dbm
from whimbrel.ran.forecast import by_slope
from whimbrel.ran.handover import HandoverRule, State
from whimbrel.ran.pathloss import PathLoss
from whimbrel.ran.tracking import Tracker

EVERY_S = 1.0
NEAR_DB = 15.0
"""A base station that is so much weaker than the serving one is not where the user goes next."""
SUPPOSED_M_PER_S = 1.5
"""Where nobody says how fast a user is: a walk. It sets how much a level's slope may change, and how long a shadow
lasts."""
MOST_USERS = 1000
LEAST_DBM = -140.0
"""Of RSRP (3GPP TS 36.133, clause 9.1.4): below that nothing is reported."""


@dataclass
class _Followed:
    tracker: Tracker
    serving: str = ""
    next_s: float = -math.inf
    made_s: float = 0.0
    forecast: HandoverForecast | None = None


class Foresight:
    """`station_of`: how a base station is set up. `seen` takes reports in the order in which they come."""

    def __init__(self, station_of: Callable[[str], BaseStation], rule: HandoverRule | None = None) -> None:
        self._station_of, self._rule = station_of, rule or HandoverRule()
        self._users: dict[str, _Followed] = {}

    def seen(self, report: UserReport, now_s: float) -> UserReport:
        """The report, with a forecast if it has none and the network sent it (it does not say where the user is).
        `now_s` on a clock that does not jump."""
        if report.forecast is not None or report.state is not LinkState.CONNECTED or math.isfinite(report.x_m):
            return report
        if report.user not in self._users and len(self._users) >= MOST_USERS:
            self._users.pop(next(iter(self._users)))
        one = self._users.setdefault(report.user, _Followed(Tracker({})))
        levels = {each.base_station: each.filtered_dbm for each in report.hears if math.isfinite(each.filtered_dbm)}
        speed = report.speed_m_per_s if math.isfinite(report.speed_m_per_s) else SUPPOSED_M_PER_S
        one.tracker.losses = {**one.tracker.losses, **{name: self._loss(name) for name in levels}}
        one.tracker.hear(now_s, levels, speed)
        if one.serving != report.serving:
            one.serving, one.forecast, one.next_s = report.serving, None, -math.inf
        if now_s >= one.next_s:
            one.forecast, one.made_s, one.next_s = self._forecast(one, levels, now_s, speed), now_s, now_s + EVERY_S
        if one.forecast is None:
            return report
        age_s = now_s - one.made_s
        times = {name: max(0.0, getattr(one.forecast, name) - age_s) for name in ("early_s", "median_s", "late_s")}
        return replace(report, forecast=replace(one.forecast, **times))

    def _forecast(
        self, one: _Followed, levels: dict[str, float], now_s: float, speed: float
    ) -> HandoverForecast | None:
        known = one.tracker.estimates
        if one.serving not in known or one.serving not in levels:
            return None
        near = {name: found for name, found in known.items()
                if name in levels and found.level_dbm >= known[one.serving].level_dbm - NEAR_DB}  # fmt: skip
        if len(near) < 2:
            return None
        losses = {name: one.tracker.losses[name] for name in near}
        return by_slope(self._rule, losses, State(serving=one.serving), near, now_s, speed)

    def _loss(self, name: str) -> PathLoss:
        station = self._station_of(name)
        floor = floor_dbm(station.technology) if station.floor_dbm is None else station.floor_dbm
        return PathLoss(sensitivity_dbm=floor, floor_dbm=min(floor, LEAST_DBM))
