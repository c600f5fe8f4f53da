"""One user's radio, measurement by measurement: what is believed, filtered, decided and forecast.

The same object serves the user's equipment, which decides for itself, and a network that follows a user by its reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whimbrel.model.radio import HandoverForecast, LinkState
from whimbrel.ran import forecast, handover
from whimbrel.ran.handover import Decision, HandoverRule, State
from whimbrel.ran.mobility import Track
from whimbrel.ran.pathloss import Air
from whimbrel.ran.sanity import Judge, Problem
from whimbrel.ran.tracking import Tracker

HEARD_WITHIN_S = 1.0  # a station not heard for longer is not there


@dataclass(frozen=True)
class Seen:
    """What one measurement led to. `filtered_dbm`: of all stations heard lately."""

    filtered_dbm: dict[str, float]
    decision: Decision | None = None
    told: tuple[str, ...] = ()


@dataclass
class UserRadio:
    air: Air
    rule: HandoverRule
    track: Track | None = None
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self._losses = {name: station.loss for name, station in self.air.stations.items()}
        self._sensitivity = {name: loss.sensitivity_dbm for name, loss in self._losses.items()}
        self._judge = Judge(frozenset(self._losses))
        self._tracker = Tracker(self._losses)
        self._now_s = 0.0
        self._speed = 0.0

    @property
    def link(self) -> LinkState:
        if self.state.target is not None:
            return LinkState.HANDOVER
        return LinkState.CONNECTED if self.state.serving is not None else LinkState.NO_COVERAGE

    def hear(self, t_s: float, x_m: float, y_m: float, speed_m_per_s: float, rssi_dbm: Mapping[str, float]) -> Seen:
        """A measurement: time, place and speed of the user, RSSI of all stations heard. Never raises, whatever the
        numbers are; what is not believed leads to no decision."""
        verdict = self._judge.hear(t_s, x_m, y_m, rssi_dbm)
        if verdict.rssi_dbm is None:
            return Seen(self._filtered(), told=verdict.told)
        if verdict.begins_anew:
            self._tracker.forget()
        self._now_s = t_s
        self._speed = speed_m_per_s if 0 <= speed_m_per_s <= self._judge.max_speed_m_per_s else self._speed
        told = list(verdict.told)
        for name in self._tracker.hear(t_s, verdict.rssi_dbm, self._speed):
            text = f"RSSI of {name} leapt to {verdict.rssi_dbm[name]:g} dBm: waiting for the next measurement"
            if line := self._judge.note(Problem.LEAP, name, text, t_s):
                told.append(line)
        filtered = self._filtered()
        if rssi_dbm and not verdict.rssi_dbm:  # nothing in it was believed: that is no loss of coverage
            return Seen(filtered, told=tuple(told))
        self.state, decision = handover.step(self.rule, self._sensitivity, self.state, t_s, filtered)
        return Seen(filtered, decision, tuple(told))

    def _filtered(self) -> dict[str, float]:
        return self._tracker.heard_dbm(self._now_s, HEARD_WITHIN_S)

    def forecast(self, *, horizon_s: float = 0.0, seed: int = 1) -> HandoverForecast | None:
        """By the path where it is known, else by slopes. `horizon_s` 0: 60 s by the path, 20 s by slopes."""
        known = self._tracker.estimates
        if self.track is not None:
            return forecast.by_path(
                self.rule, self.air, self.state, known, self.track, self._now_s, horizon_s=horizon_s or 60.0, seed=seed
            )
        return forecast.by_slope(
            self.rule, self._losses, self.state, known, self._now_s, self._speed, horizon_s=horizon_s or 20.0, seed=seed
        )

    def begun(self, target: str) -> None:
        """A handover is being carried out."""
        self.state = handover.begun(self.state, target)

    def finished(self) -> None:
        self.state = handover.finished(self.state, self._now_s)

    def lost(self) -> None:
        self.state = handover.lost(self.state, self._now_s)

    def failed(self) -> None:
        self.state = handover.failed(self.state, self._now_s)
