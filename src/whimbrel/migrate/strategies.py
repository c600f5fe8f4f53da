"""The strategies as compositions of the same primitives; adding one is adding one row.

`rounds`: memory crosses while the service runs (`train` IV step 2, `fast` II-A5). `lazy`: the restored program
runs before all of its pages are in place. The final dirty set, the images and the commit are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel.model.errors import BadInput
from whimbrel.model.migration import Strategy


@dataclass(frozen=True)
class Composition:
    rounds: bool
    lazy: bool


COMPOSITIONS: dict[Strategy, Composition] = {
    Strategy.STOP_AND_COPY: Composition(rounds=False, lazy=False),
    Strategy.PRE_COPY: Composition(rounds=True, lazy=False),
    Strategy.HYBRID: Composition(rounds=True, lazy=True),
}


def composition_of(strategy: str) -> Composition:
    """Raises BadInput for a strategy that does not exist."""
    try:
        return COMPOSITIONS[Strategy(strategy)]
    except ValueError:
        raise BadInput(f"there is no strategy {strategy!r}: choose from {', '.join(COMPOSITIONS)}") from None
