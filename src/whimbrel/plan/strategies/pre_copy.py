"""Memory crosses in rounds while the service runs; the freeze carries what the last round left; restored whole."""

from whimbrel.plan.strategies.composition import Carry, Rounds, Strategy

STRATEGY = Strategy(
    name="pre-copy",
    summary="rounds while it runs, then the rest; all pages in place before it runs on",
    source="train IV and Table II (pc), fast II-A5",
    carry=Carry.STREAM,
    rounds=Rounds(12, converge=True),
)
