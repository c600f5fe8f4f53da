"""Tables and summaries out of records."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from whimbrel.bench import report, table
from whimbrel.bench.downtime import Options
from whimbrel.bench.report import FAIL, PASS
from whimbrel.bench.trial import next_after, sized
from whimbrel.cli.main import run
from whimbrel.model.errors import BadInput
from whimbrel.model.migration import MigrationRecord, Outcome, Phase


def record(outage_ms: float = 60.0, **changes: object) -> MigrationRecord:
    plain = MigrationRecord(
        id="m-1",
        service="demo",
        source="edge-1",
        destination="edge-2",
        strategy="hybrid",
        outcome=Outcome.DONE,
        workload="20 MB",
        total_ms=1234.5,
        freeze_ms=48.2,
        outage_udp_ms=outage_ms,
        outage_tcp_ms=outage_ms + 1,
        lost=0,
        resets=0,
        state_ok=True,
        bytes_sent=211_000_000,
        phases=(
            Phase(name="prepare", start_ms=0, duration_ms=100),
            Phase(name="freeze", start_ms=100, duration_ms=outage_ms),
        ),
    )
    return msgspec.structs.replace(plain, **changes)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.04, "0.0 ms"), (9.94, "9.9 ms"), (63.4, "63 ms"), (999.4, "999 ms"), (1234.5, "1.23 s")],
)
def test_ms(value: float | None, text: str) -> None:
    assert table.ms(value) == text


def test_a_row_shows_what_was_measured() -> None:
    assert table.cells(record()) == (
        "edge-1 → edge-2", "hybrid", "1.23 s", "48 ms", "60 ms", "61 ms", "0", "0", "211 MB", "ok",
    )  # fmt: skip


def test_what_was_not_measured_is_a_dash() -> None:
    unseen = record(lost=None, resets=None, outage_udp_ms=None, outage_tcp_ms=None, state_ok=None)
    assert table.cells(unseen)[4:8] == ("-", "-", "-", "-")
    assert table.cells(unseen)[-1] == "-"


@pytest.mark.parametrize(
    ("changes", "good", "state"),
    [
        ({}, True, "ok"),
        ({"state_ok": None, "lost": None, "resets": None}, True, "-"),
        ({"lost": 1}, False, "ok"),
        ({"resets": 1}, False, "ok"),
        ({"state_ok": False}, False, "DAMAGED"),
        ({"outcome": Outcome.ROLLED_BACK, "error": "the link broke"}, False, "rolled-back: the link broke"),
    ],
)
def test_what_is_good(changes: dict[str, object], good: bool, state: str) -> None:
    assert table.is_good(record(**changes)) is good
    assert table.state_text(record(**changes)) == state


def test_plain_text_is_aligned() -> None:
    lines = table.plain(("strategy", "total"), [("hybrid", "9 ms"), ("stop-and-copy", "1.23 s")]).splitlines()
    assert lines == ["strategy        total", "hybrid           9 ms", "stop-and-copy  1.23 s"]


def test_not_a_terminal_gets_plain_text_and_a_terminal_a_table() -> None:
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=160)
        table.show_migrations(console, [record(), record(lost=3)])
        assert "edge-1 → edge-2" in out.getvalue()
        assert ("\x1b[" in out.getvalue()) is terminal


def test_markdown() -> None:
    lines = table.markdown(table.HEADINGS, [table.cells(record())]).splitlines()
    assert lines[1] == "|---|---|---:|---:|---:|---:|---:|---:|---:|---|"
    assert lines[2].startswith("| edge-1 → edge-2 | hybrid | 1.23 s |")


def test_summary_has_medians_and_ratios_against_the_baseline() -> None:
    ours = [record(value) for value in (50, 60, 70, 80, 100)]
    failed = record(1.0, outcome=Outcome.FAILED)
    plain = [record(value, strategy=report.BASELINE) for value in (600, 700, 800)]
    elsewhere = record(30, workload="200 MB")
    first, base, other = report.summary([*ours, failed, *plain, elsewhere])
    assert (first["strategy"], first["workload"], first["n"], first["failed"]) == ("hybrid", "20 MB", 5, 1)
    assert first["outage_udp_ms"] == {"p50": 70, "p95": 100}
    assert first["ratio_udp"] == pytest.approx(0.1)
    assert first["phases_ms"] == {"prepare": 100, "freeze": 70}
    assert "ratio_udp" not in base
    assert "ratio_udp" not in other
    assert report.summary_cells(first)[-4:-2] == ("1/10.0", "1/9.9")


def test_what_was_asked_for_makes_a_row_and_what_it_came_to_is_told() -> None:
    runs = [record(asked="auto"), record(asked="auto", strategy="post-copy"), record(asked="hybrid")]
    auto, hybrid = report.summary(runs)
    assert (auto["strategy"], auto["n"], auto["came_to"]) == ("auto", 2, {"hybrid": 1, "post-copy": 1})
    assert (hybrid["strategy"], hybrid["n"], hybrid["came_to"]) == ("hybrid", 1, {"hybrid": 1})
    assert report.summary_cells(auto)[1] == "auto (hybrid, post-copy)"
    assert report.summary_cells(hybrid)[1] == "hybrid"


@pytest.mark.parametrize(
    ("outages_ms", "verdict"),
    [([50.0] * 10, "PASS"), ([50.0] * 9 + [98.0], "PASS"), ([50.0] * 9 + [120.0], "FAIL"), ([], "-")],
)
def test_p95_is_held_against_twice_the_median(outages_ms: list[float], verdict: str) -> None:
    runs = [record(value) for value in outages_ms] or [record(outcome=Outcome.FAILED)]
    (entry,) = report.summary(runs)
    assert report.summary_cells(entry)[-2] == verdict


@pytest.mark.parametrize(
    ("workload", "outage_ms", "baseline_ms", "n", "changes", "said"),
    [
        ("20 MB, 500 pages/s", 90, 300, 10, {}, "PASS"),
        ("20 MB, 500 pages/s", 90, 250, 10, {}, "FAIL: UDP > 1/3, TCP > 1/3"),
        ("200 MB, 500 pages/s", 110, 900, 10, {}, "FAIL: UDP > 100 ms, TCP > 100 ms"),
        ("1 GB, 500 pages/s", 110, 2500, 10, {"asked": "auto"}, "PASS"),
        ("1 GB, 500 pages/s", 119.5, 2500, 10, {}, "FAIL: TCP > 120 ms"),
        ("1 GB, 500 pages/s", 110, 1500, 10, {}, "FAIL: UDP > 1/15, TCP > 1/15"),
        ("20 MB, 500 pages/s", 50, 300, 9, {}, "unproved: n < 10, n < 10 of the baseline"),
        ("20 MB, 500 pages/s", 50, 0, 10, {}, "unproved: UDP without baseline, TCP without baseline"),
        ("20 MB, 500 pages/s", 50, 300, 10, {"lost": 1, "state_ok": False}, "FAIL: lost, state"),
        ("redis", 500, 300, 10, {}, "-"),
        ("20 MB, 500 pages/s", 500, 300, 10, {"strategy": "tmpfs"}, "-"),
    ],
)
def test_a_row_is_held_against_what_is_promised_of_it(
    workload: str, outage_ms: float, baseline_ms: float, n: int, changes: dict[str, object], said: str
) -> None:
    ours = [record(outage_ms, workload=workload, **changes)] * n
    plain = [record(baseline_ms, workload=workload, strategy=report.BASELINE)] * n if baseline_ms else []
    entry, *_ = report.summary([*ours, *plain])
    assert report.summary_cells(entry)[-1] == said


def test_a_few_that_are_far_worse_break_the_promise() -> None:
    ours = [record(outage, workload="20 MB, 500 pages/s") for outage in [50.0] * 8 + [140.0, 140.0]]
    plain = [record(300, workload="20 MB, 500 pages/s", strategy=report.BASELINE)] * 10
    entries = report.summary([*ours, *plain])
    assert entries[0]["promised"] == "FAIL: p95 > 2 x p50"
    assert report.fails({"summary": entries})


def test_a_baseline_of_a_few_migrations_proves_nothing() -> None:
    ours = [record(50, workload="20 MB, 500 pages/s")] * 10
    plain = [record(300, workload="20 MB, 500 pages/s", strategy=report.BASELINE)] * 9
    failed = record(300, workload="20 MB, 500 pages/s", strategy=report.BASELINE, outcome=Outcome.FAILED)
    entry, base = report.summary([*ours, *plain, failed])
    assert entry["promised"] == "unproved: n < 10 of the baseline"
    assert base["promised"] == ""
    entry, _ = report.summary([*ours, *plain, plain[0]])
    assert (entry["promised"], entry["n_baseline"]) == ("PASS", 10)


def test_the_specification_promises_what_is_checked() -> None:
    text = (Path(__file__).parents[2] / "SPECIFICATION.md").read_text()
    for workload, promise in report.PROMISES.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {workload.split(',')[0]}")]
        assert f"at most {promise.outage_ms:.0f} ms and 1/{1 / promise.ratio:.0f} of the baseline" in row.replace(
            "outage of UDP and of TCP ", ""
        )


def test_a_group_without_one_success_is_still_reported() -> None:
    (entry,) = report.summary([record(outcome=Outcome.FAILED, error="no")])
    assert (entry["n"], entry["failed"], entry["outage_udp_ms"]) == (0, 1, None)
    assert report.summary_cells(entry)[2] == "0 (+1 failed)"


def test_document_is_json_with_the_agreed_names() -> None:
    document = json.loads(json.dumps(report.document({"sizes_mb": [20]}, [record()])))
    assert set(document) == {"machine", "parameters", "runs", "summary"}
    assert document["machine"]["cpus"] > 0
    agreed = {
        "id", "service", "workload", "source", "destination", "strategy", "reason", "outcome", "error",
        "total_ms", "freeze_ms", "outage_udp_ms", "outage_tcp_ms", "lost", "resets", "state_ok", "rss_bytes",
        "bytes_sent", "phases", "rounds",
    }  # fmt: skip
    assert agreed <= set(document["runs"][0])
    assert {"strategy", "workload", "n", "outage_udp_ms"} <= set(document["summary"][0])


def test_round_trip_goes_round() -> None:
    assert [next_after(["a", "b", "c"], node) for node in "abc"] == ["b", "c", "a"]


@pytest.mark.parametrize(("size", "name"), [(20, "20 MB, 500 pages/s"), (1024, "1 GB, 500 pages/s")])
def test_workload_names(size: int, name: str) -> None:
    assert sized(size).name == name


def test_the_baseline_runs_as_often_as_each_strategy() -> None:
    assert Options().total == 60
    assert Options(strategies=("auto", "tmpfs"), migrations=3).total == 27
    assert Options(baseline=False).total == 30
    assert [workload.name for workload in Options(workload_names=("blank", "memory"), sizes_mb=(20,)).workloads()] == [
        "blank",
        "20 MB, 500 pages/s",
    ]


@pytest.mark.parametrize(
    "wrong", [{"strategies": ("teleport",)}, {"migrations": 0}, {"sizes_mb": ()}, {"workload_names": ("tetris",)}]
)
def test_options_are_checked_before_anything_starts(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Options(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"summary": [{"promised": PASS}, {"promised": ""}]}, 0),
        ({"summary": [{"promised": PASS}, {"promised": f"{FAIL}: p50 UDP"}]}, 1),
        ({"summary": [], "promised": f"{FAIL}: < 60%"}, 1),
        ({"summary": [{}], "verdict": f"{FAIL}: p99 51.0 ms"}, 1),
        ({"summary": [{}], "verdict": f"{PASS}: p99 49.0 ms"}, 0),
    ],
)
def test_what_does_not_keep_a_promise_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, result: dict[str, Any], code: int
) -> None:
    monkeypatch.setattr("whimbrel.bench.api.run", lambda _: result)
    assert run(["bench", "api"]) == code
