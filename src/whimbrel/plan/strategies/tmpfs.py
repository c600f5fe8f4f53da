"""Iterative dumps staged in tmpfs at both ends and copied by rsync: the paper's first way for known paths."""

from whimbrel.plan.strategies.composition import Carry, Rounds, Strategy

STRATEGY = Strategy(
    name="tmpfs",
    summary="iterative dumps staged in tmpfs at both ends, copied by rsync, restored by CRIU from the files",
    source="fast III-B1, train IV",
    carry=Carry.RSYNC,
    rounds=Rounds(2),
)
