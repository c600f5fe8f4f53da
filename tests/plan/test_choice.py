"""What `auto` chooses, by tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from whimbrel.plan.choice import Situation, choose, predictions
from whimbrel.plan.costs import ELSEWHERE, HYBRID, POST_COPY, SHARED, Costs
from whimbrel.plan.strategies import known

MB = 1 << 20
GBIT, MBIT100 = 125e6, 12.5e6


@pytest.mark.parametrize(
    ("situation", "strategy", "why"),
    [
        (Situation(200 * MB, 10 * MB, GBIT), HYBRID, "keeps the freeze short"),
        (Situation(200 * MB, 10 * MB, GBIT, handover_in_ms=8000), HYBRID, "handover comes in 8.0 s"),
        # no file is copied either way: by what memory gets there sooner
        (Situation(200 * MB, 500 * MB, GBIT, shared=True), HYBRID, "with a freeze of 60 ms, shared is predicted"),
        (Situation(200 * MB, 500 * MB, MBIT100, shared=True), HYBRID, "both nodes mount"),
        (Situation(200 * MB, 0, MBIT100, shared=True, storage_bytes_per_s=10 * GBIT), SHARED, "hybrid is predicted"),
        (Situation(200 * MB, 0, GBIT, shared=True, storage_bytes_per_s=10 * GBIT), SHARED, "no file is copied"),
        (Situation(50 * MB, 0, GBIT, shared=True, storage_bytes_per_s=10 * GBIT), HYBRID, "no file is copied"),
        (Situation(200 * MB, 0, MBIT100, shared=True, storage_bytes_per_s=0.0), HYBRID, "as soon as"),
        (Situation(200 * MB, 500 * MB, GBIT, shared=True, handover_in_ms=8000), HYBRID, "memory crosses ahead"),
        (
            Situation(200 * MB, 0, MBIT100, shared=True, storage_bytes_per_s=10 * GBIT, max_downtime_ms=100),
            HYBRID,
            "no file is copied",
        ),
        (Situation(200 * MB, 0, MBIT100, deadline_ms=5000), POST_COPY, "would miss --deadline 5.0 s"),
        (Situation(200 * MB, 0, MBIT100, deadline_ms=60_000), HYBRID, "keeps the freeze short"),
        (Situation(200 * MB, 0, MBIT100, dirty_bytes_per_s=12e6, max_downtime_ms=500), POST_COPY, "--max-downtime 500"),
        (Situation(200 * MB, 0, GBIT, dirty_bytes_per_s=2e6, max_downtime_ms=100), HYBRID, "freeze"),
        (Situation(200 * MB, 0, MBIT100, max_downtime_ms=10), HYBRID, "nothing meets --max-downtime 10 ms"),
        (Situation(200 * MB, 600 * MB, MBIT100, deadline_ms=1000), POST_COPY, "nothing meets --deadline 1.0 s"),
        (Situation(200 * MB, 0, 0.0), HYBRID, ""),
        (Situation(200 * MB, 0, 0.0, shared=True), HYBRID, "hybrid arrives as soon as the link allows"),
        (Situation(200 * MB, 0, 0.0, shared=True, max_downtime_ms=1000), HYBRID, ""),
        (Situation(200 * MB, 0, 0.0, shared=True, deadline_ms=60_000), HYBRID, ""),
        (
            Situation(200 * MB, 0, MBIT100, shared=True, storage_bytes_per_s=10 * GBIT, deadline_ms=5000),
            SHARED,
            "both nodes mount",
        ),
        # after the first round: what is dirty again, how fast it is written, what is left of the deadline
        (Situation(16 * MB, 0, MBIT100, 4e6, prepared=True, deadline_ms=4500), HYBRID, "keeps the freeze short"),
        (
            Situation(16 * MB, 0, MBIT100, 9e6, prepared=True, deadline_ms=4500),
            POST_COPY,
            "would miss --deadline 4.5 s",
        ),
        (Situation(16 * MB, 0, MBIT100, 12e6, prepared=True, max_downtime_ms=300), POST_COPY, "--max-downtime 300 ms"),
        (Situation(16 * MB, 0, MBIT100, 12e6, prepared=True), HYBRID, "keeps the freeze short"),
        (Situation(2 * MB, 0, GBIT, 1e6, prepared=True, deadline_ms=200), HYBRID, "keeps the freeze short"),
        (Situation(2 * MB, 0, GBIT, 1e6, deadline_ms=200), HYBRID, "nothing meets --deadline 0.2 s"),
    ],
)
def test_what_is_chosen_and_why(situation: Situation, strategy: str, why: str) -> None:
    choice = choose(situation)
    assert choice.strategy == strategy, choice.reason
    assert why in choice.reason


def test_what_was_learnt_here_decides() -> None:
    limited = Situation(200 * MB, 0, GBIT, max_downtime_ms=100)
    assert choose(limited).strategy == HYBRID
    slow = Costs({**ELSEWHERE.freeze_ms, HYBRID: 150.0}, ELSEWHERE.before_ms)
    assert choose(replace(limited, costs=slow)).strategy == POST_COPY
    quick = Costs({**ELSEWHERE.freeze_ms, SHARED: 40.0}, {**ELSEWHERE.before_ms, SHARED: 100.0})
    by_storage = Situation(50 * MB, 0, GBIT, shared=True, storage_bytes_per_s=10 * GBIT)
    assert (choose(by_storage).strategy, choose(replace(by_storage, costs=quick)).strategy) == (HYBRID, SHARED)


def test_only_strategies_that_exist_are_chosen() -> None:
    shared = Situation(MB, MB, GBIT, shared=True)
    assert {prediction.strategy for prediction in predictions(shared)} <= set(known())


def test_more_to_carry_never_arrives_sooner() -> None:
    for smaller, larger in (
        (Situation(100 * MB, 0, GBIT), Situation(200 * MB, 0, GBIT)),
        (Situation(100 * MB, 0, GBIT), Situation(100 * MB, 50 * MB, GBIT)),
        (Situation(100 * MB, 0, GBIT), Situation(100 * MB, 0, MBIT100)),
        (Situation(100 * MB, 0, GBIT), Situation(100 * MB, 0, GBIT, dirty_bytes_per_s=1e8)),
    ):
        for less, more in zip(predictions(smaller), predictions(larger), strict=True):
            assert less.arrives_ms <= more.arrives_ms
            assert less.freeze_ms <= more.freeze_ms
