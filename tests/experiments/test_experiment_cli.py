from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import made
import pytest

from whimbrel.bench.report import machine
from whimbrel.cli.main import run
from whimbrel.experiments.catalogue import experiments
from whimbrel.experiments.samples import Samples, save


def test_ls_shows_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", "ls", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(experiments()) >= {"fast", "train-migration", "delta", "outage"}
    assert listed["fast"]["paper"] == "fast"
    assert {"Figure 4", "Figure 5", "Figure 6", "Figure 7", "Table II"} <= set(listed["fast"]["figures"])
    assert run(["experiment", "ls"]) == 0
    assert "train-migration" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["run", "nonsense"], 1, "there is no experiment 'nonsense': choose from"),
        (["run", "fast", "--runs", "-1"], 2, "--runs"),
        (["run", "fast", "--workload", "blank, none"], 1, "experiment fast has no workload none: give some of blank"),
        (["run", "fast", "--strategy", "none"], 1, "experiment fast has no strategy none: give some of"),
        (["run", "fast", "--out", "/dev/null/there"], 1, "--out /dev/null/there cannot be made"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], code: int, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experiment", *argv]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert named in said


def test_samples_of_another_experiment_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples.json").write_text(
        '{"experiment": "delta", "quick": false, "seed": 1, "link_rate_bps": 1, "machine": {}}'
    )
    assert run(["experiment", "run", "fast", "--out", str(tmp_path)]) == 1
    assert "has samples of another run (experiment 'delta', now 'fast')" in capsys.readouterr().err


@pytest.mark.parametrize(("outages", "code"), [((40.0,) * 5, 0), ((400.0,) * 5, 1), ((400.0,) * 4, 0)])
def test_the_exit_code_says_whether_what_is_wanted_holds(
    outages: tuple[float, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of samples that are there already: nothing is measured. Four of five prove nothing."""
    ours, script = made.OURS, made.SCRIPT
    few = made.experiment()
    promise = replace(few.figures[0].promises[0], least_n=5)
    few = replace(few, runs=len(outages), figures=(replace(few.figures[0], promises=(promise,)),))
    monkeypatch.setattr("whimbrel.experiments.catalogue.experiments", lambda: {"made": few})
    samples = [made.sample(ours, number, outage) for number, outage in enumerate(outages)]
    samples += [made.sample(script, number, 200.0) for number in range(len(outages))]
    kept = Samples(experiment="made", quick=False, seed=1, link_rate_bps=0.0, machine=machine())
    save(tmp_path, kept.plus(samples))
    assert run(["experiment", "run", "made", "--out", str(tmp_path)]) == code


def test_the_pictures_program_is_loaded_only_to_draw() -> None:
    """The command must start fast: matplotlib and scipy take a second."""
    import subprocess
    import sys

    code = (
        "import sys; from whimbrel.cli.main import run; run(['experiment', 'ls']); "
        "sys.exit(bool({'matplotlib', 'scipy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
