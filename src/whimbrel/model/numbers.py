"""One check for every number that comes from outside: it is a number, finite, and one that can be meant."""

from __future__ import annotations

from math import isfinite

from whimbrel.model.errors import BadInput


def wrong(value: object, low: float, high: float) -> str:
    """What is wrong with a number that has to lie within `low` and `high`; "" when nothing is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"is {value!r}, which is no number"
    if not isfinite(value):
        return f"is {value}, which nobody can have measured"
    if not low <= value <= high:
        return f"is {value:g}, out of the possible {low:g} to {high:g}"
    return ""


def check(whose: str, what: str, value: object, low: float, high: float) -> None:
    """Raises BadInput that names the thing, its part and the range: ``server edge-1: cpus is -1, out of …``."""
    if problem := wrong(value, low, high):
        raise BadInput(f"{whose}: {what} {problem}: correct it where it was measured or written down")
