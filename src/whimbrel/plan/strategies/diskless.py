"""Pages straight into the destination's memory through CRIU's page server: the paper's second way for known paths."""

from whimbrel.plan.strategies.composition import Carry, Rounds, Strategy

STRATEGY = Strategy(
    name="diskless",
    summary="iterative dumps through CRIU's page server into the destination's memory, nothing staged here",
    source="fast III-B2",
    carry=Carry.PAGE_SERVER,
    rounds=Rounds(2),
)
