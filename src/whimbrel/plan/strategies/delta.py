"""A full copy ahead while the service runs; at the migration only what changed, as XOR against that copy, packed."""

from whimbrel.plan.strategies.composition import Carry, Codec, Rounds, Strategy

STRATEGY = Strategy(
    name="delta",
    summary="a full checkpoint ahead, then only the difference (XOR, zstd)",
    source="coordinated IV-B and Table I",
    carry=Carry.STREAM,
    rounds=Rounds(1),
    codec=Codec.DELTA,
)
