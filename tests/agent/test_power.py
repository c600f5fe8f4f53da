"""The benchmark of computing power, and the file that keeps its result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whimbrel.agent import power, primes
from whimbrel.model.errors import StepFailed


def test_the_work_is_what_it_says() -> None:
    assert primes.event() == primes.PRIMES == 1229


def test_it_is_measured_once_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "power.json"
    first = power.computing_power(file)
    assert first.events_per_s > 0
    assert first.machine == power.machine_identity()
    assert power.computing_power(file) == first
    assert power.computing_power(file, anew=True).measured_unix_s > first.measured_unix_s


@pytest.mark.parametrize("damage", ["", "{}", '{"events_per_s": "many"}', "another machine"])
def test_what_says_nothing_of_this_machine_is_measured_anew(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "power.json"
    told = {"events_per_s": 1.0, "measured_unix_s": 0.0, "machine": "elsewhere"}
    file.write_text(json.dumps(told) if damage == "another machine" else damage)
    found = power.computing_power(file)
    assert found.machine == power.machine_identity()
    assert power.kept(file) == found


def test_a_benchmark_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "primes.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(primes, "__file__", str(broken))
    with pytest.raises(StepFailed, match="computing power cannot be measured"):
        power.computing_power(tmp_path / "power.json")
    assert power.kept(tmp_path / "power.json") is None
