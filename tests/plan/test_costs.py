"""What migrations cost here, out of their records."""

from __future__ import annotations

import msgspec
import pytest

from whimbrel.model.migration import MigrationRecord, Outcome, Phase, Round
from whimbrel.plan.costs import ELSEWHERE, HYBRID, POST_COPY, SHARED, learnt

MB = 1 << 20


def record(strategy: str, freeze_ms: float, prepare_ms: float, outcome: Outcome = Outcome.DONE) -> MigrationRecord:
    """100 MB crossed in a second, and 1 MB in the freeze."""
    return MigrationRecord(
        id="x", service="s", source="a", destination="b", strategy=strategy, outcome=outcome, freeze_ms=freeze_ms,
        rss_bytes=100 * MB,
        phases=(Phase(name="preflight", start_ms=0, duration_ms=50), Phase(name="prepare", start_ms=50,
                                                                           duration_ms=prepare_ms)),
        rounds=(
            Round(n=1, dirty_pages=25600, bytes_sent=100 * MB, duration_ms=1000, raw_bytes=100 * MB),
            Round(n=2, dirty_pages=256, bytes_sent=MB, duration_ms=freeze_ms, raw_bytes=MB),
        ),
    )  # fmt: skip


def test_a_few_records_say_nothing() -> None:
    assert learnt([]) == ELSEWHERE
    assert learnt([record(HYBRID, 500, 900), record(HYBRID, 500, 900)]) == ELSEWHERE


def test_medians_without_what_crossed_in_the_freeze() -> None:
    costs = learnt([record(HYBRID, freeze_ms, 250) for freeze_ms in (110, 95, 4000)])
    assert costs.freeze_ms[HYBRID] == pytest.approx(100)
    assert costs.before_ms[HYBRID] == 300
    assert (costs.freeze_ms[SHARED], costs.before_ms[POST_COPY]) == (450, 300), "of others nothing is known"


def test_shared_reads_all_memory_in_the_freeze() -> None:
    assert learnt([record(SHARED, 1200, 250)] * 3).freeze_ms[SHARED] == pytest.approx(200)


def test_what_says_nothing_is_left_out() -> None:
    one = record(HYBRID, 110, 250)
    useless = [
        record(HYBRID, 5000, 5000, Outcome.ROLLED_BACK),
        msgspec.structs.replace(one, image_bytes=MB, freeze_ms=5000),
        msgspec.structs.replace(one, strategy="mine"),
    ]
    assert learnt([one, one, *useless * 3]) == ELSEWHERE
    without_rounds = msgspec.structs.replace(record(POST_COPY, 90, 250), rounds=())
    costs = learnt([without_rounds] * 3)
    assert (costs.freeze_ms[POST_COPY], costs.before_ms[POST_COPY]) == (80, 300)
