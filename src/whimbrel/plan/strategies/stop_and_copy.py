"""Freeze, copy everything, restore: the simplest, and the longest freeze."""

from whimbrel.plan.strategies.composition import Carry, Rounds, Strategy

STRATEGY = Strategy(
    name="stop-and-copy",
    summary="freeze, copy everything, restore",
    source="train IV and Table II (sc)",
    carry=Carry.STREAM,
    rounds=Rounds(0),
)
