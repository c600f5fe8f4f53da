"""`whimbrel bench api`: a small run of it, and the verdict."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console

from whimbrel.bench import api


@pytest.mark.thorough
def test_a_small_run_measures_every_kind_of_request() -> None:
    text = io.StringIO()
    found = api.run(Console(file=text), rate_per_s=60, seconds=3.0, nodes=14, users=25)
    assert [row["request"] for row in found["summary"]][-1] == "all"
    whole = found["summary"][-1]
    assert whole["n"] == 180
    assert 0 < whole["p50_ms"] <= whole["p99_ms"] <= whole["worst_ms"]
    assert {"200"} == set(found["statuses"])
    assert found["events"] > 0
    assert "requests/s" in text.getvalue()


@pytest.mark.parametrize(
    ("p99_ms", "statuses", "said"),
    [
        (50.0, {200: 9}, "PASS"),
        (50.1, {200: 9}, "FAIL: p99 50.1 ms"),
        (1.0, {200: 9, 503: 1}, "FAIL: answered with 503"),
    ],
)
def test_the_verdict(p99_ms: float, statuses: dict[int, int], said: str) -> None:
    assert api.verdict(p99_ms, Counter(statuses)).startswith(said)
