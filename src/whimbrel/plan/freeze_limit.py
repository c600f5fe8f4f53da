"""How long a freeze may last before it counts as hung. Pure; tested by tables."""

from __future__ import annotations

from collections.abc import Sequence

from whimbrel.plan.convergence import RoundFacts

FIXED_S = 10.0
"""CRIU on both sides, their processes and images, on a busy machine; some 0.1 s is usual."""
LOCAL_BYTES_PER_S = 64 << 20
"""At least this fast a node walks through, writes or reads the service's memory; some 1 GB/s is usual."""
FACTOR = 4.0
SLOWEST_BYTES_PER_S = 1 << 10


def left_to_cross_bytes(rounds: Sequence[RoundFacts], *, memory_bytes: int, files_bytes: int, converge: bool) -> int:
    """At most this much crosses in the freeze, without any coding.

    Rounds that converge leave about what the last one found. Otherwise nobody knows how old they are: all of it may
    have been written again. `files_bytes`: what the last pass over the files sent.
    """
    if not rounds or not converge:
        return memory_bytes + files_bytes
    return min(rounds[-1].dirty_bytes, memory_bytes + files_bytes) + files_bytes


def freeze_limit_s(crossing_bytes: int, *, memory_bytes: int, link_bytes_per_s: float) -> float:
    """Generous: whoever takes longer than this does not work on it any more."""
    crossing_s = crossing_bytes / max(link_bytes_per_s, SLOWEST_BYTES_PER_S)
    return FIXED_S + memory_bytes / LOCAL_BYTES_PER_S + FACTOR * crossing_s
