"""The planners by name. Each is a file of this package, or a user's own under the entry point ``whimbrel.planners``,
that holds one `Planner` named ``PLANNER``; nothing else must be told of it."""

from __future__ import annotations

from functools import cache

from whimbrel.model.errors import BadInput
from whimbrel.plan.discovery import find
from whimbrel.plan.planners.interface import Planner

DEFAULT = "orchestrated"
ENTRY_POINTS = "whimbrel.planners"


@cache
def known() -> dict[str, Planner]:
    """All planners, by name, in alphabetical order."""
    return find(__name__, __path__, "PLANNER", Planner, ENTRY_POINTS)


def planner_of(name: str) -> Planner:
    """Raises BadInput for a name that no planner has."""
    try:
        return known()[name]
    except KeyError:
        raise BadInput(f"there is no planner {name!r}: choose from {', '.join(known())}") from None


__all__ = ["DEFAULT", "Planner", "known", "planner_of"]
