"""Which strategy ``auto`` means for one migration. Pure; tested by tables.

Known path and time (`fast` III-B): pre-copy ahead, and hybrid at the handover. Unknown path (`fast` III-C): what
finishes soonest. For the paper that is the shared file system where both nodes mount it, because no files are copied;
here none are by any strategy then, so it is a matter of how memory gets there: over the link, or written to the
storage and read from it. A budget for the freeze and a deadline for the arrival decide otherwise where the prediction
says that they would be missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isinf

from whimbrel.plan.costs import ELSEWHERE, HYBRID, POST_COPY, SHARED, Costs

EAGER_BYTES = 2 << 20
"""What of a program's memory must be there before it runs at all: stacks, code it changed, what CRIU carries."""
LAST_ROUND_MS = 50.0
"""How long a service writes, at least, between the last round and the freeze."""


@dataclass(frozen=True)
class Situation:
    """What is known of a migration. `link_bytes_per_s` is measured, or limited by the user, 0 while nobody knows (then
    nothing meets a limit); `dirty_bytes_per_s` is None before anybody has measured it; `shared`: the service's files
    lie on storage that both nodes mount, which takes `storage_bytes_per_s` (None: as fast as the link); `prepared`:
    both nodes are ready, what is left is to cross and to restore; `handover_in_ms` 0 means that nobody knows when the
    user leaves, 0 in a limit that there is none."""

    memory_bytes: int
    files_bytes: int
    link_bytes_per_s: float
    dirty_bytes_per_s: float | None = None
    shared: bool = False
    storage_bytes_per_s: float | None = None
    prepared: bool = False
    handover_in_ms: float = 0.0
    max_downtime_ms: float = 0.0
    deadline_ms: float = 0.0
    costs: Costs = ELSEWHERE


@dataclass(frozen=True)
class Prediction:
    """`arrives_ms`: from now until the service runs at the destination; `freeze_ms` is part of it."""

    strategy: str
    arrives_ms: float
    freeze_ms: float

    def meets(self, situation: Situation) -> bool:
        in_budget = situation.max_downtime_ms <= 0 or self.freeze_ms <= situation.max_downtime_ms
        in_time = situation.deadline_ms <= 0 or self.arrives_ms <= situation.deadline_ms
        return in_budget and in_time


@dataclass(frozen=True)
class Choice:
    strategy: str
    reason: str


def predictions(situation: Situation) -> tuple[Prediction, ...]:
    """For each strategy that `choose` considers."""
    found = [_hybrid(situation), _post_copy(situation)]
    if situation.shared:
        found.append(_shared(situation))
    return tuple(found)


def choose(situation: Situation) -> Choice:
    """The strategy and, in one line, why."""
    found = {prediction.strategy: prediction for prediction in predictions(situation)}
    hybrid = found[HYBRID]
    if situation.handover_in_ms > 0:
        ahead = replace(situation, deadline_ms=max(situation.deadline_ms, 0.0))
        if hybrid.meets(ahead):
            when = f"the handover comes in {situation.handover_in_ms / 1e3:.1f} s"
            return Choice(HYBRID, f"{when}: memory crosses ahead, {_tell(hybrid)}")
    fitting = [prediction for prediction in found.values() if prediction.meets(situation)]
    shared = found.get(SHARED)
    if shared is not None and situation.handover_in_ms <= 0 and (shared in fitting or hybrid in fitting):
        others = [other for other in (hybrid, shared) if other in fitting]
        best = min(others, key=lambda prediction: prediction.arrives_ms)  # hybrid where they are alike
        told = f"{_tell(hybrid)}, {_tell(shared)}"
        return Choice(best.strategy, f"both nodes mount the service's storage, so no file is copied: {told}")
    if hybrid in fitting:
        return Choice(HYBRID, f"it keeps the freeze short and nothing is at stake after it, {_tell(hybrid)}")
    if fitting:
        best = min(fitting, key=lambda prediction: prediction.arrives_ms)
        return Choice(best.strategy, f"hybrid would miss {_missed(hybrid, situation)}; {_tell(best)}")
    best = _nearest(list(found.values()), situation)
    return Choice(best.strategy, f"nothing meets {_missed(best, situation)}; the nearest is taken, {_tell(best)}")


def _hybrid(situation: Situation) -> Prediction:
    link, dirty = situation.link_bytes_per_s, situation.dirty_bytes_per_s or 0.0
    share = dirty / link if link > 0 else 1.0
    fixed = situation.costs.freeze_ms[HYBRID]
    if share >= 0.9:  # rounds do not shrink: everything is dirty again when a round has crossed
        freeze_ms = fixed + _copy_ms(situation.memory_bytes, link)
        rounds_ms = 2 * _copy_ms(situation.memory_bytes, link)
    else:
        freeze_ms = fixed + LAST_ROUND_MS * share
        rounds_ms = _copy_ms(situation.memory_bytes, link) / (1 - share)
    arrives_ms = _fixed_ms(HYBRID, situation) + _files_ms(situation) + rounds_ms + freeze_ms
    return Prediction(HYBRID, arrives_ms, freeze_ms)


def _post_copy(situation: Situation) -> Prediction:
    freeze_ms = situation.costs.freeze_ms[POST_COPY] + _copy_ms(
        min(EAGER_BYTES, situation.memory_bytes), situation.link_bytes_per_s
    )
    return Prediction(POST_COPY, _fixed_ms(POST_COPY, situation) + _files_ms(situation) + freeze_ms, freeze_ms)


def _shared(situation: Situation) -> Prediction:
    """Memory goes to the storage, and in the freeze from there to the destination."""
    link, dirty = situation.storage_bytes_per_s, situation.dirty_bytes_per_s or 0.0
    if link is None:
        link = situation.link_bytes_per_s
    copy_ms = _copy_ms(situation.memory_bytes, link)
    freeze_ms = situation.costs.freeze_ms[SHARED] + copy_ms + LAST_ROUND_MS * dirty / max(link, 1.0)
    return Prediction(SHARED, _fixed_ms(SHARED, situation) + copy_ms + freeze_ms, freeze_ms)


def _fixed_ms(strategy: str, situation: Situation) -> float:
    return 0.0 if situation.prepared else situation.costs.before_ms[strategy]


def _copy_ms(size_bytes: float, bytes_per_s: float) -> float:
    return size_bytes / bytes_per_s * 1e3 if bytes_per_s > 0 else float("inf")


def _files_ms(situation: Situation) -> float:
    return 0.0 if situation.shared else _copy_ms(situation.files_bytes, situation.link_bytes_per_s)


def _nearest(found: Sequence[Prediction], situation: Situation) -> Prediction:
    """The one that misses its limits by the smallest factor."""

    def miss(prediction: Prediction) -> float:
        factors = [1.0]
        if situation.max_downtime_ms > 0:
            factors.append(prediction.freeze_ms / situation.max_downtime_ms)
        if situation.deadline_ms > 0:
            factors.append(prediction.arrives_ms / situation.deadline_ms)
        return max(factors)

    return min(found, key=miss)


def _tell(prediction: Prediction) -> str:
    if isinf(prediction.arrives_ms):
        return f"{prediction.strategy} arrives as soon as the link allows"
    return (
        f"{prediction.strategy} is predicted to arrive in {prediction.arrives_ms / 1e3:.1f} s "
        f"with a freeze of {prediction.freeze_ms:.0f} ms"
    )


def _missed(prediction: Prediction, situation: Situation) -> str:
    missed = []
    if 0 < situation.max_downtime_ms < prediction.freeze_ms:
        missed.append(f"--max-downtime {situation.max_downtime_ms:.0f} ms (predicted {prediction.freeze_ms:.0f})")
    if 0 < situation.deadline_ms < prediction.arrives_ms:
        missed.append(f"--deadline {situation.deadline_ms / 1e3:.1f} s (predicted {prediction.arrives_ms / 1e3:.1f})")
    return " and ".join(missed) or "the limits"
