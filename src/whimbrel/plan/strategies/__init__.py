"""The strategies by name. Each is a file of this package, or a user's own under the entry point
``whimbrel.strategies``, that holds one `Strategy` named ``STRATEGY``; nothing else must be told of it."""

from __future__ import annotations

from functools import cache

from whimbrel.model.errors import BadInput
from whimbrel.plan.discovery import find
from whimbrel.plan.strategies.composition import Carry, Codec, Rounds, Strategy

AUTO = "auto"
DEFAULT = AUTO
ENTRY_POINTS = "whimbrel.strategies"


@cache
def known() -> dict[str, Strategy]:
    """All strategies, by name, in alphabetical order."""
    return find(__name__, __path__, "STRATEGY", Strategy, ENTRY_POINTS)


def names() -> tuple[str, ...]:
    """What `--strategy` takes: ``auto`` first."""
    return (AUTO, *known())


def check_name(name: str) -> str:
    """The name itself; raises BadInput when no strategy has it."""
    if name not in names():
        raise BadInput(f"there is no strategy {name!r}: choose from {', '.join(names())}")
    return name


def strategy_of(name: str) -> Strategy:
    """Raises BadInput for a name that no strategy has; ``auto`` is none, it is chosen first (`plan.choice`)."""
    try:
        return known()[name]
    except KeyError:
        raise BadInput(f"there is no strategy {name!r}: choose from {', '.join(names())}") from None


__all__ = ["AUTO", "DEFAULT", "Carry", "Codec", "Rounds", "Strategy", "check_name", "known", "names", "strategy_of"]
