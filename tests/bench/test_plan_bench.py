"""The planner's benchmark: real plans of made-up regions, beside the optimum, with a verdict."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from whimbrel.bench import plan
from whimbrel.bench.plan import Case, summary
from whimbrel.bench.report import FAIL, PASS


def test_plans_are_measured_beside_the_optimum() -> None:
    text = StringIO()
    cases = (Case("tiny", 20, 3, 3, 0.7), Case("too much", 20, 3, 3, 1.4, settled=False, promised=False))
    result = plan.run(Console(file=text, width=200), seeds=1, exact_s=10.0, cases=cases)
    tiny, too_much = result["runs"]
    assert tiny["violations"] == too_much["violations"] == []
    assert tiny["left"] == 0
    assert tiny["exact"]["left"] == 0
    assert 0 <= tiny["from_optimum"] <= tiny["gap"] + 1e-9
    assert 0 < too_much["left_at_least"] <= too_much["left"]
    assert sum(too_much["why_left"].values()) == too_much["left"]
    assert "has room" in text.getvalue()
    assert [row["case"] for row in result["summary"]] == ["tiny", "too much"]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, PASS),
        ({"took_s": 1.1}, FAIL),
        ({"from_optimum": 0.011}, FAIL),
        ({"violations": ["server s has 1 of CPU"]}, FAIL),
    ],
)
def test_the_verdict(change: dict[str, Any], verdict: str) -> None:
    one = {"case": "tiny", "options": 9, "took_s": 0.5, "from_optimum": 0.005, "left": 0, "left_at_least": 0}
    runs = [{**one, "violations": []}, {**one, "violations": [], **change}]
    (row,) = summary(runs, (Case("tiny", 20, 3, 3, 0.7),))
    assert row["promised"] == verdict
    assert plan.cells(row)[-1] == verdict


def test_what_is_not_promised_still_must_keep_the_constraints() -> None:
    run = {"case": "full", "options": 9, "took_s": 5.0, "from_optimum": 0.5, "left": 1, "left_at_least": 0}
    case = Case("full", 20, 3, 3, 0.99, promised=False)
    assert summary([{**run, "violations": []}], (case,))[0]["promised"] == ""
    assert summary([{**run, "violations": ["x"]}], (case,))[0]["promised"] == FAIL
