"""The command `whimbrel ue` without a lab: options, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from whimbrel.cli.main import run
from whimbrel.lab import topology
from whimbrel.model.radio import UserEvent, UserNote, UserReport

WALK = str(Path(topology.__file__).parent / "topologies" / "walk.toml")
IDLE = ("ue", "--topology", WALK, "--radio", "idle", "--out")


def test_a_walk_of_some_seconds(tmp_path: Path) -> None:
    out = tmp_path / "ue.jsonl"
    assert run([*IDLE, str(out), "--seconds", "5", "--speed-up", "10", "--path-known"]) == 0
    events = [msgspec.json.decode(line, type=UserEvent) for line in out.read_bytes().splitlines()]
    assert isinstance(events[0], UserNote)
    reports = [event for event in events if isinstance(event, UserReport)]
    assert reports[-1].elapsed_s >= 5
    assert any(report.forecast is not None and report.forecast.source == "path" for report in reports)


def test_a_way_of_ones_own(tmp_path: Path) -> None:
    trace = tmp_path / "trace.xml"
    steps = "".join(f'<timestep time="{n}"><vehicle id="v" x="{10 * n}" y="5"/></timestep>' for n in range(11))
    trace.write_text(f"<fcd-export>{steps}</fcd-export>")
    out = tmp_path / "ue.jsonl"
    assert run([*IDLE, str(out), "--path", str(trace), "--vehicle", "v", "--seconds", "3", "--speed-up", "10"]) == 0
    reports = [msgspec.json.decode(line, type=UserEvent) for line in out.read_bytes().splitlines()]
    assert {report.speed_m_per_s for report in reports if isinstance(report, UserReport)} == {10.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--user", "ue-9"], "the topology has no user 'ue-9', only ue-1"),
        (["--decide", "nobody"], "choose user or network"),
        (["--radio", "ham"], "choose lab or idle"),
        (["--radio", "lab"], "is not up: run `whimbrel lab up`"),
        (["--path", "/nowhere.gpx"], "/nowhere.gpx cannot be read"),
        (["--vehicle", "v"], "name the trace"),
        (["--workload", "simple"], "--workload and --address belong together"),
        (["--workload", "nothing", "--address", "10.77.1.1"], "nothing"),
        (["--interval", "0ms"], "interval_s 0 is not possible"),
        (["--speed-up", "500"], "come too fast"),
        (["--speed-up", "nan"], "speed_up nan is not possible"),
        (["--interruption", "1min"], "interruption_ms 60000 is not possible"),
        (["--report-to", "somewhere"], "is no place to report to"),
        (["--out", "/nowhere/ue.jsonl"], "/nowhere/ue.jsonl cannot be written"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    text = Path(WALK).read_text().replace('name = "walk"', 'name = "walk"\nprefix = "nolab-"')
    (tmp_path / "walk.toml").write_text(text)
    argv = ["ue", "--topology", str(tmp_path / "walk.toml"), "--out", str(tmp_path / "out"), "--seconds", "1"]
    assert run([*argv, *options]) == 1
    out, err = capfd.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert not out


def test_a_topology_without_radio_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["ue", "--topology", "default"]) == 1
    assert "the topology default has no [radio]: see docs/radio.md" in capfd.readouterr().err
