"""Nothing crosses before the freeze but what the restore needs; the program fetches its pages while it runs."""

from whimbrel.plan.strategies.composition import Carry, Rounds, Strategy

STRATEGY = Strategy(
    name="post-copy",
    summary="restored at once; pages follow while it runs, those it waits for first",
    source="well known; for services that write faster than the link carries, and for short deadlines",
    carry=Carry.STREAM,
    rounds=Rounds(0),
    lazy=True,
    behind=True,
)
