"""Walks past base stations in a row, and what the handover forecasts made on the way are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whimbrel.ran.handover import HandoverRule, Reason
from whimbrel.ran.mobility import Leg, Track, walk
from whimbrel.ran.pathloss import Air, PathLoss, Station
from whimbrel.ran.user import UserRadio

INTERVAL_S = 0.2


def row_of_stations(count: int, spacing_m: float, loss: PathLoss) -> list[Station]:
    return [Station(name=f"bs-{n}", x_m=n * spacing_m, y_m=0.0, height_m=5.0, loss=loss) for n in range(count)]


def way_past(count: int, spacing_m: float, speed_m_per_s: float) -> Track:
    return walk([Leg(0, 5, speed_m_per_s), Leg((count - 1) * spacing_m, 5, speed_m_per_s)], "way")


@dataclass(frozen=True)
class Forecast:
    """One forecast: how long before the handover it was made, and what it said."""

    lead_s: float
    error_s: float
    is_covered: bool
    is_target: bool


@dataclass(frozen=True)
class Walked:
    handovers: list[tuple[float, str, Reason]]
    forecasts: list[Forecast]


def go(seed: int, speed_m_per_s: float, *, known: bool, spacing_m: float = 50.0, shadowing_db: float = 4.0,
       every: int = 10, count: int = 3, power_dbm: float = 20.0) -> Walked:  # fmt: skip
    """One walk; a forecast every `every` measurements."""
    loss = PathLoss(shadowing_db=shadowing_db, transmit_power_dbm=power_dbm)
    air = Air(row_of_stations(count, spacing_m, loss), seed)
    track = way_past(count, spacing_m, speed_m_per_s)
    view = UserRadio(air, HandoverRule(), track if known else None)
    handovers, made = [], []
    for number in range(int(track.duration_s / INTERVAL_S)):
        t_s = number * INTERVAL_S
        place = track.at(t_s)
        seen = view.hear(t_s, *place, air.measure(place.x_m, place.y_m, number))
        if seen.decision is not None:
            if seen.decision.reason in (Reason.STRONGER, Reason.LOST_COVERAGE):
                handovers.append((t_s, seen.decision.target, seen.decision.reason))
            if seen.decision.target:
                view.begun(seen.decision.target)
                view.finished()
            else:
                view.lost()
        elif number % every == 0 and (forecast := view.forecast(seed=number)) is not None:
            made.append((t_s, forecast))
    forecasts = []
    for t_s, forecast in made:
        later = [each for each in handovers if each[0] > t_s]
        if later:
            lead_s = later[0][0] - t_s
            forecasts.append(
                Forecast(
                    lead_s,
                    forecast.median_s - lead_s,
                    forecast.early_s <= lead_s <= forecast.late_s,
                    forecast.target == later[0][1],
                )
            )
    return Walked(handovers, forecasts)


def median_error_s(forecasts: list[Forecast], from_s: float, to_s: float) -> float:
    """Of the absolute error, among forecasts made that long ahead."""
    return float(np.median([abs(each.error_s) for each in forecasts if from_s <= each.lead_s < to_s]))
