"""Can a strategy work between two nodes, and if not, which is the nearest that can? Pure; tested by tables."""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel.model.errors import Refused
from whimbrel.model.units import format_bytes
from whimbrel.plan.strategies import Carry, Strategy, known

SHORTEST_FREEZE_FIRST = ("hybrid", "pre-copy", "diskless", "tmpfs", "delta", "post-copy", "stop-and-copy")
"""Of those that can work the first of the same family is the nearest."""
LAST_RESORT = "shared"
"""Where none of those can: who has storage for it asks for it by name."""
LAYERS_FACTOR = 1.25
"""What layers of images take of a service's memory: all of it, and pages written again in later rounds."""
STAGED_HERE = frozenset({Carry.RSYNC})
STAGED_THERE = frozenset({Carry.RSYNC, Carry.PAGE_SERVER})


@dataclass(frozen=True)
class Means:
    """What two nodes have of what a strategy may need: `tracking` of writes (userfaultfd, `PAGEMAP_SCAN`) and
    `soft_dirty` bits at the source, userfaultfd for a `lazy` restore at the destination, and the room in the tmpfs in
    which images are staged, at both. `shared_problem`: why memory cannot cross over storage that both mount; empty when
    it can. `rsync_here`, `rsync_there`: whether they have that program."""

    tracking: bool
    soft_dirty: bool
    lazy: bool
    stage_here_bytes: int
    stage_there_bytes: int
    shared_problem: str = ""
    rsync_here: bool = True
    rsync_there: bool = True


def lacking(strategy: Strategy, means: Means, memory_bytes: int, *, here: str, there: str) -> str:
    """Why a service of this memory cannot move by this strategy, in one piece of a line; empty when it can."""
    if strategy.carry is Carry.SHARED and means.shared_problem:
        return means.shared_problem
    own_layers = strategy.carry in (Carry.RSYNC, Carry.SHARED)  # CRIU's pre-dump may write them: by soft-dirty bits
    if not means.tracking and not (own_layers and means.soft_dirty):
        also = " and tracks no soft-dirty bits" if own_layers else ""
        return f"{here} cannot track writes by userfaultfd{also} (`whimbrel check` there says why)"
    if strategy.lazy and not means.lazy:
        return f"{there} cannot restore lazily, its kernel has no userfaultfd (`whimbrel check` there says more)"
    for node, has_rsync in ((here, means.rsync_here), (there, means.rsync_there)):
        if strategy.carry in STAGED_THERE and not has_rsync:
            return f"there is no rsync on {node} (`whimbrel check` there says how to get it)"
    needed = int(memory_bytes * LAYERS_FACTOR)
    for node, free, stages in (
        (here, means.stage_here_bytes, STAGED_HERE),
        (there, means.stage_there_bytes, STAGED_THERE),
    ):
        if strategy.carry in stages and needed > free:
            return f"it stages {format_bytes(needed)} in memory on {node}, where there is room for {format_bytes(free)}"
    return ""


def nearest(strategy: Strategy, means: Means, memory_bytes: int) -> Strategy | None:
    """The one that can work and is most like this one: staged or streamed alike, then the shortest freeze."""
    streamed = strategy.carry is Carry.STREAM
    able = [
        other
        for name in (*SHORTEST_FREEZE_FIRST, LAST_RESORT)
        if name != strategy.name
        and (other := known().get(name)) is not None
        and not lacking(other, means, memory_bytes, here="", there="")
    ]
    alike = [other for other in able if (other.carry is Carry.STREAM) is streamed and other.name != LAST_RESORT]
    return next(iter((*alike, *able)), None)


def possible(
    strategy: Strategy, means: Means, memory_bytes: int, *, here: str, there: str, auto: bool = False
) -> tuple[Strategy, str]:
    """This strategy when it can work; with `auto` else the nearest that can, and why it is another one (else empty).

    Raises Refused with the reason and the nearest that can, when this one was asked for and cannot work.
    """
    reason = lacking(strategy, means, memory_bytes, here=here, there=there)
    if not reason:
        return strategy, ""
    other = nearest(strategy, means, memory_bytes)
    if auto and other is not None:
        return other, f"{strategy.name} cannot work here: {reason}"
    way_out = f"use --strategy {other.name}" if other is not None else "no other strategy can: choose another node"
    raise Refused(f"{strategy.name} cannot work here: {reason}; {way_out}")
