"""The ways of users, for a map that is opened later: whole, the coarser the longer they are. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_POINTS = 128
LEAST_STEP_M = 0.5
MOST_TOLD = 4096
"""Points of all users together in one picture of the region."""


class Way:
    """Where one user has been. When there are too many points every other one goes, and the next are farther apart."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._least_m = LEAST_STEP_M

    def go(self, x_m: float, y_m: float) -> None:
        """A place that is no number is left out."""
        if not (math.isfinite(x_m) and math.isfinite(y_m)):
            return
        if self.points and math.dist(self.points[-1], (x_m, y_m)) < self._least_m:
            return
        if len(self.points) == MOST_POINTS:
            self.points = self.points[::2]
            self._least_m *= 2
        self.points.append((round(x_m, 1), round(y_m, 1)))


def told(ways: Mapping[str, Way]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Each with its first and its newest point, and as many between as there is room for; none that has only one."""
    moved = {name: way.points for name, way in ways.items() if len(way.points) > 1}
    room = max(2, MOST_TOLD // max(1, len(moved)))
    found = {}
    for name, points in moved.items():
        step = math.ceil((len(points) - 1) / (room - 1))
        found[name] = (*points[:-1:step], points[-1])
    return found
