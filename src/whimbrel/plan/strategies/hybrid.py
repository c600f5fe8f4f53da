"""Rounds while the service runs; restored lazily out of the pages that wait at the destination."""

from whimbrel.plan.strategies.composition import Carry, Rounds, Strategy

STRATEGY = Strategy(
    name="hybrid",
    summary="rounds while it runs, then restored lazily out of the pages that are there already",
    source="our own: pre-copy and lazy restore in one",
    carry=Carry.STREAM,
    rounds=Rounds(12, converge=True),
    lazy=True,
)
