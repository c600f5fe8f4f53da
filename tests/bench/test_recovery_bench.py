from __future__ import annotations

from typing import Any

import pytest

from whimbrel.bench.recovery import (
    DESTINATION,
    DISCOVERY,
    HEADINGS,
    MOMENTS,
    PROMISED_S,
    VICTIMS,
    Case,
    cases,
    cells,
    verdict,
)
from whimbrel.bench.report import FAIL, PASS, fails
from whimbrel.model.errors import BadInput


def found(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"moment": "rounds", "victim": "source", "recovered_s": 3.0, "not": "", "agents_s": 1.0}
    return values | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, PASS),
        ({"recovered_s": PROMISED_S}, PASS),
        ({"recovered_s": PROMISED_S + 0.1}, f"{FAIL}: > 10 s"),
        ({"recovered_s": None, "not": "user"}, f"{FAIL}: never (user)"),
        ({"recovered_s": None, "error": "the moment was not reached"}, f"{FAIL}: the moment was not reached"),
    ],
)
def test_the_verdict(changes: dict[str, Any], says: str) -> None:
    row = found(**changes)
    row["promised"] = verdict(row)
    assert row["promised"] == says
    assert fails({"summary": [row]}) == says.startswith(FAIL)
    assert len(cells(row)) == len(HEADINGS)


def test_every_victim_at_every_moment() -> None:
    every = cases()
    assert len(every) == len(set(every)) == len(MOMENTS) * len(VICTIMS) - 1
    assert Case(DISCOVERY, DESTINATION) not in every, "a service that is just being deployed has none"
    assert {one.moment for one in cases(["rounds"])} == {"rounds"}
    with pytest.raises(BadInput, match="there is no moment 'noon'"):
        cases(["noon"])
