"""Which measurements are believed. What is not is named, once while it lasts, and leaves no trace in filters and
decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from whimbrel.ran.mobility import MAX_SPEED_M_PER_S

HIGHEST_DBM = 0.0  # 1 mW at a receiver: nobody stands in an antenna
LOWEST_DBM = -150.0  # below thermal noise in any band that is used
LONGEST_GAP_S = 10.0
BELIEVED_AFTER = 3  # measurements on end that agree with a clock that was set, or a place that was jumped to
QUIET_AFTER_S = 30.0  # without a problem it may be named again


class Problem(StrEnum):
    NOT_A_NUMBER = "not-a-number"
    ABSURD = "absurd"
    UNKNOWN_STATION = "unknown-station"
    LEAP = "leap"
    CLOCK_BACK = "clock-back"
    CLOCK_GAP = "clock-gap"
    JUMP = "jump"


@dataclass
class Notebook:
    """Says of each problem whether it must be told now: the first time, and again after it was gone for a while."""

    _last_s: dict[tuple[Problem, str], float] = field(default_factory=dict)

    def is_news(self, problem: Problem, subject: str, t_s: float) -> bool:
        last_s = self._last_s.get((problem, subject))
        self._last_s[problem, subject] = t_s
        return last_s is None or abs(t_s - last_s) > QUIET_AFTER_S


@dataclass(frozen=True)
class Verdict:
    """`rssi_dbm`: what is believed; None: the whole measurement is not. `begins_anew`: what was known before belongs to
    another time. `told`: one line for each problem that is news."""

    rssi_dbm: dict[str, float] | None
    begins_anew: bool = False
    told: tuple[str, ...] = ()


@dataclass
class Judge:
    """Judges the measurements of one user, in the order in which they come."""

    stations: frozenset[str]
    max_speed_m_per_s: float = MAX_SPEED_M_PER_S
    notebook: Notebook = field(default_factory=Notebook)
    _last: tuple[float, float, float] | None = None
    _doubted: int = 0
    _told: list[str] = field(default_factory=list)

    def hear(self, t_s: float, x_m: float, y_m: float, rssi_dbm: Mapping[str, float]) -> Verdict:
        """A measurement at a time and place. Never raises."""
        self._told = []
        anew = self._judge_time_and_place(t_s, x_m, y_m)
        if anew is None:
            return Verdict(None, told=tuple(self._told))
        believed = {name: float(level) for name, level in rssi_dbm.items() if self._is_believed(t_s, name, level)}
        return Verdict(believed, anew, tuple(self._told))

    def note(self, problem: Problem, subject: str, text: str, t_s: float) -> str:
        """The line to tell, or "" when it was told before."""
        return f"{problem}: {text}" if self.notebook.is_news(problem, subject, t_s) else ""

    def _say(self, problem: Problem, subject: str, text: str, t_s: float) -> None:
        if line := self.note(problem, subject, text, t_s):
            self._told.append(line)

    def _judge_time_and_place(self, t_s: float, x_m: float, y_m: float) -> bool | None:
        """None: not believed. Else whether all begins anew."""
        if not all(map(_is_number, (t_s, x_m, y_m))):
            self._say(Problem.NOT_A_NUMBER, "fix", f"time {t_s} or place {x_m}, {y_m} is no number: left out", 0.0)
            return None
        earlier, here = self._last, (t_s, x_m, y_m)
        if earlier is None:
            self._last = here
            return False
        gap_s = t_s - earlier[0]
        if gap_s <= 0:
            self._say(Problem.CLOCK_BACK, "clock", f"the clock went back by {-gap_s:.3g} s: measurements left out", t_s)
            return self._believe_in_time(here)
        if gap_s > LONGEST_GAP_S:
            self._say(Problem.CLOCK_GAP, "clock", f"no measurement for {gap_s:.3g} s: nothing is known of slopes", t_s)
            self._last, self._doubted = here, 0
            return True
        distance_m = math.dist(earlier[1:], here[1:])
        if distance_m > self.max_speed_m_per_s * gap_s + 1.0:
            text = f"the user jumped {distance_m:.0f} m in {gap_s:.3g} s: measurements left out"
            self._say(Problem.JUMP, "place", text, t_s)
            return self._believe_in_time(here)
        self._last, self._doubted = here, 0
        return False

    def _believe_in_time(self, here: tuple[float, float, float]) -> bool | None:
        """A single strange value is an error; one that stays is the truth, and everything begins anew with it."""
        self._doubted += 1
        if self._doubted < BELIEVED_AFTER:
            return None
        self._last, self._doubted = here, 0
        return True

    def _is_believed(self, t_s: float, name: str, level: float) -> bool:
        if name not in self.stations:
            self._say(Problem.UNKNOWN_STATION, name, f"there is no base station {name!r}: left out", t_s)
        elif not _is_number(level):
            self._say(Problem.NOT_A_NUMBER, name, f"RSSI of {name} is {level}: left out", t_s)
        elif not LOWEST_DBM <= level <= HIGHEST_DBM:
            self._say(Problem.ABSURD, name, f"RSSI of {name} is {level:g} dBm, not {LOWEST_DBM:g} to {HIGHEST_DBM:g}: "
                      "left out", t_s)  # fmt: skip
        else:
            return True
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
