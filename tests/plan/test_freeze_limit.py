"""How long a freeze may last, as a table."""

from __future__ import annotations

import pytest

from whimbrel.plan.convergence import RoundFacts
from whimbrel.plan.freeze_limit import FACTOR, FIXED_S, freeze_limit_s, left_to_cross_bytes

MB = 1 << 20


@pytest.mark.parametrize(
    ("dirty", "files_bytes", "converge", "crossing_bytes"),
    [
        ([], 0, False, 200 * MB),  # stop-and-copy
        ([], 5 * MB, False, 205 * MB),
        ([200 * MB], 0, False, 200 * MB),  # one copy ahead, who knows when
        ([200 * MB, 20 * MB, MB], 0, True, MB),
        ([200 * MB, 20 * MB, MB], 3 * MB, True, 4 * MB),
        ([900 * MB], 0, True, 200 * MB),  # more than there is does not cross
    ],
)
def test_what_is_left_to_cross(dirty: list[int], files_bytes: int, converge: bool, crossing_bytes: int) -> None:
    rounds = [RoundFacts(dirty_bytes=size, duration_ms=1.0) for size in dirty]
    found = left_to_cross_bytes(rounds, memory_bytes=200 * MB, files_bytes=files_bytes, converge=converge)
    assert found == crossing_bytes


def test_the_limit_leaves_time_for_all_that_crosses_at_the_rate_of_the_link() -> None:
    slow = freeze_limit_s(200 * MB, memory_bytes=200 * MB, link_bytes_per_s=MB)
    assert slow > FIXED_S + FACTOR * 200
    assert freeze_limit_s(0, memory_bytes=0, link_bytes_per_s=MB) == FIXED_S
    assert freeze_limit_s(MB, memory_bytes=200 * MB, link_bytes_per_s=100 * MB) < 2 * FIXED_S
    assert freeze_limit_s(MB, memory_bytes=0, link_bytes_per_s=0.0) > 1000
