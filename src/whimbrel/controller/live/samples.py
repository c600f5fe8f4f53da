"""What users' charts showed lately, for a page that is opened later: delay and signal of the last two minutes. Pure."""

from __future__ import annotations

import math
from array import array

MOST_SAMPLES = 120
LEAST_APART_S = 1.0
NOTHING = math.nan


class Samples:
    """Of one user; about 2 kB. The oldest give way to the newest."""

    def __init__(self) -> None:
        self._unix_s = array("d")
        self._delay_ms = array("f")
        self._rssi_dbm = array("f")
        self._next = 0

    def take(self, unix_s: float, delay_ms: float | None, rssi_dbm: float | None) -> None:
        """One that comes less than a second after the one before is left out."""
        newest = (self._next - 1) % MOST_SAMPLES
        if self._unix_s and 0 <= unix_s - self._unix_s[newest] < LEAST_APART_S:
            return
        row = ((self._unix_s, unix_s), (self._delay_ms, delay_ms), (self._rssi_dbm, rssi_dbm))
        for series, value in row:
            number = NOTHING if value is None else value
            if len(series) < MOST_SAMPLES:
                series.append(number)
            else:
                series[self._next] = number
        self._next = (self._next + 1) % MOST_SAMPLES

    def told(self) -> tuple[tuple[float, float | None, float | None], ...]:
        """Unix time in s, delay in ms, RSSI in dBm, the oldest first; null is what was not known."""
        count = len(self._unix_s)
        order = [(self._next + step) % count for step in range(count)] if count == MOST_SAMPLES else range(count)
        return tuple((round(self._unix_s[i], 3), _known(self._delay_ms[i]), _known(self._rssi_dbm[i])) for i in order)


def _known(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None
