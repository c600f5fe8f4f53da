"""Dumps onto storage that both nodes mount, restored from there: the paper's way for paths that nobody knows ahead."""

from whimbrel.plan.strategies.composition import Carry, Rounds, Strategy

STRATEGY = Strategy(
    name="shared",
    summary="iterative dumps onto a file system that both nodes mount; nothing is copied between them",
    source="fast III-C",
    carry=Carry.SHARED,
    rounds=Rounds(2),
)
