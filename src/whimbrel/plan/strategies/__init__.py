"""The strategies by name. Each is a file of this package, or a user's own under the entry point
``whimbrel.strategies``, that holds one `Strategy` named ``STRATEGY``; nothing else must be told of it."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from whimbrel.model.errors import BadInput
from whimbrel.plan.strategies.composition import Carry, Codec, Rounds, Strategy

AUTO = "auto"
DEFAULT = AUTO
ENTRY_POINTS = "whimbrel.strategies"


@cache
def known() -> dict[str, Strategy]:
    """All strategies, by name, in alphabetical order."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        strategy = getattr(importlib.import_module(f"{__name__}.{module.name}"), "STRATEGY", None)
        if isinstance(strategy, Strategy):
            found.append(strategy)
    found += [point.load() for point in entry_points(group=ENTRY_POINTS)]
    return {strategy.name: strategy for strategy in sorted(found, key=lambda strategy: strategy.name)}


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
