"""From samples to rows, tables and pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from made import OURS, SCRIPT, experiment, failed, sample
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from rich.console import Console

from whimbrel.client.report import Report
from whimbrel.experiments import paper, picture, text
from whimbrel.experiments.catalogue import find
from whimbrel.experiments.model import By, Promise, Row, Sample, Verdict
from whimbrel.experiments.quantities import SHARE, SHARE_LESS_KEPT, TOTAL, TOTAL_LESS_AHEAD, TOTAL_LESS_ROOT, WRITE_RATE
from whimbrel.experiments.rows import any_broken, no_slower, rows_of, verdicts
from whimbrel.model.migration import Phase, Round

SAMPLES = [
    *(sample(OURS, number, outage) for number, outage in enumerate((40.0, 50.0, 60.0))),
    *(sample(SCRIPT, number, outage, dump_ms=100.0) for number, outage in enumerate((190.0, 210.0))),
]


def rows(samples: list[Sample], skipped: dict[str, str] | None = None) -> dict[tuple[str, str], Row]:
    made = experiment()
    found = rows_of(
        made,
        made.figures[0],
        lambda key: [one for one in samples if one.cell == key],
        paper.load("fast"),
        skipped or {},
    )
    return {(row.by, row.quantity): row for row in found}


def test_a_row_has_ours_the_baselines_and_the_papers() -> None:
    row = rows(SAMPLES)["whimbrel", "outage"]
    assert (row.ours, row.median, row.sd, row.n) == (50.0, 50.0, 10.0, 3)
    assert row.ci95 == pytest.approx(4.3027 * 10 / 3**0.5, rel=1e-4)
    assert (row.baseline, row.baseline_n, row.baseline_ratio) == (200.0, 2, 0.25)
    assert (row.paper, row.paper_sd, row.paper_ci95, row.paper_where) == (
        1042.974, 52.79, 39.806, "Section IV-A, Figure 4",
    )  # fmt: skip
    assert row.ratio == pytest.approx(50 / 1042.974)


def test_the_script_has_rows_of_its_own_without_the_papers_numbers() -> None:
    row = rows(SAMPLES)["script", "outage"]
    assert (row.ours, row.paper, row.baseline) == (200.0, None, None)


def test_failures_are_counted_and_not_averaged() -> None:
    row = rows([*SAMPLES, failed(OURS, 3, "the link broke")])["whimbrel", "outage"]
    assert (row.ours, row.n, row.failed, row.note) == (50.0, 3, 1, "the link broke")


def test_what_was_skipped_says_why_beside_the_papers_number() -> None:
    row = rows([], {OURS.key: "not here"})["whimbrel", "outage"]
    assert (row.ours, row.n, row.note, row.paper) == (None, 0, "not here", 1042.974)


def test_counts_are_summed() -> None:
    row = rows([sample(OURS, 0, 50.0, lost=2), sample(OURS, 1, 50.0, lost=1)])["whimbrel", "lost"]
    assert (row.ours, row.n, row.ci95) == (3.0, 2, None)


@pytest.mark.parametrize(
    ("ours", "half", "median", "held"),
    [
        (100.0, 1.0, 100.0, True),
        (210.0, 1.0, 210.0, False),
        (210.0, 15.0, 210.0, True),
        (252.0, 900.0, 252.0, False),  # lies in the interval of few values, and is a quarter longer
        (None, None, None, None),
    ],
)
def test_no_slower_than_the_baseline_within_what_the_samples_tell_and_within_a_tenth(
    ours: float | None, half: float | None, median: float | None, held: bool | None
) -> None:
    row = Row(figure="", workload="", strategy="", by="", quantity="", label="", unit="ms", ours=ours, ci95=half,
              median=median, baseline=200.0, baseline_ci95=5.0, baseline_median=200.0)  # fmt: skip
    assert no_slower(row) is held


def of(strategy: str, ours: float, n: int, *, failed: int = 0, baseline_n: int = 10, workload: str = "blank") -> Row:
    return Row(figure="f", workload=workload, strategy=strategy, by="whimbrel", quantity="total", label="", unit="ms",
               ours=ours, median=ours, n=n, failed=failed, baseline=100.0, baseline_median=100.0,
               baseline_n=baseline_n)  # fmt: skip


def judged(promise: Promise, *found: Row) -> Verdict:
    (verdict,) = verdicts(replace(experiment().figures[0], promises=(promise,)), found)
    return verdict


SHORT = Promise("short", "total", lambda row: None if row.ours is None else row.ours < 50, least_n=10)


@pytest.mark.parametrize("ours", [40.0, 60.0])
def test_few_values_prove_nothing_either_way(ours: float) -> None:
    verdict = judged(SHORT, of("tmpfs", ours, 9))
    assert (verdict.held, verdict.broken, verdict.unproved) == (0, (), ("blank tmpfs",))
    assert "unproved, with fewer than 10 values, for blank tmpfs (0 of 1)" in text.verdict(verdict)
    assert not any_broken([verdict])
    enough = judged(SHORT, of("tmpfs", ours, 10))
    assert any_broken([enough]) is (ours > 50)


def test_few_values_of_the_baseline_prove_nothing() -> None:
    assert judged(replace(SHORT, baseline=True), of("tmpfs", 40.0, 10, baseline_n=3)).unproved == ("blank tmpfs",)


def test_what_must_not_happen_at_all_needs_all_migrations_to_hold_and_one_to_break() -> None:
    none = Promise("none", "total", lambda row: row.ours == 0, least_n=20, counts=True)
    assert judged(none, of("tmpfs", 0.0, 3)).unproved == ("blank tmpfs",)
    assert judged(none, of("tmpfs", 1.0, 3)).broken == ("blank tmpfs",)
    assert judged(none, of("tmpfs", 0.0, 20)).held == 1


def test_one_failed_migration_breaks_a_promise() -> None:
    verdict = judged(SHORT, of("tmpfs", 40.0, 17, failed=3))
    assert (verdict.held, verdict.broken, verdict.failed) == (0, ("blank tmpfs",), ("blank tmpfs",))
    assert "NOT held by blank tmpfs (migrations failed: blank tmpfs)" in text.verdict(verdict)
    nothing = replace_row(of("tmpfs", 0.0, 0, failed=4), quantity="other", ours=None)
    assert judged(SHORT, nothing).broken == ("blank tmpfs",), "all failed: there is no row of the quantity"
    elsewhere = replace(SHORT, cells=lambda row: row.strategy == "shared")
    assert judged(elsewhere, of("tmpfs", 40.0, 17, failed=3), of("shared", 40.0, 17)).held == 1


def replace_row(row: Row, **changes: object) -> Row:
    return msgspec.structs.replace(row, **changes)


def test_the_papers_order_of_totals() -> None:
    """Section IV-B: shared storage is the shortest, then disk-less, then tmpfs."""
    figure = next(figure for figure in find("fast").figures if figure.key == "figure-7")
    names = [promise for promise in figure.promises if promise.beside]

    def orders(n: int = 10, **medians: float) -> list[tuple[int, bool, bool]]:
        found = [of(strategy, median, n) for strategy, median in medians.items()]
        verdict_of = {one.promise: one for one in verdicts(replace(figure, promises=tuple(names)), found)}
        return [(one.held, bool(one.broken), bool(one.unproved)) for one in verdict_of.values()]

    assert len(names) == 3
    assert orders(shared=2831.0, diskless=16015.0, tmpfs=16405.0) == [(1, False, False)] * 3
    assert orders(shared=764.0, diskless=550.0, tmpfs=851.0) == [
        (0, True, False), (1, False, False), (1, False, False)
    ]  # fmt: skip
    assert orders(3, shared=2831.0, diskless=16015.0, tmpfs=16405.0) == [(0, False, True)] * 3


def test_every_promise_says_how_many_values_prove_it_and_a_whole_run_has_them() -> None:
    for name in ("fast", "outage", "delta"):
        made = find(name)
        for figure in made.figures:
            for promise in figure.promises:
                assert promise.least_n >= 5, promise.text
                ours = [cell for cell in figure.cells if cell.by is By.WHIMBREL]
                shown = [cell for cell in ours if promise.cells(of(cell.strategy, 1.0, 1, workload=cell.name))]
                assert shown
                assert all(made.runs * cell.moves >= promise.least_n for cell in shown), promise.text


def test_redis_must_be_under_load_for_twenty_migrations() -> None:
    figure = next(figure for figure in find("outage").figures if figure.key == "state")
    mine = [promise for promise in figure.promises if promise.cells(of("hybrid", 1.0, 1, workload="redis"))]
    assert {promise.quantity: promise.least_n for promise in mine} == {
        "lost": 20, "resets": 20, "damaged": 20, "write_rate": 20
    }  # fmt: skip
    rate = next(promise for promise in mine if promise.quantity == "write_rate")
    assert rate.holds(of("hybrid", 4900.0, 20, workload="redis")) is True
    assert rate.holds(of("hybrid", 900.0, 20, workload="redis")) is False


def with_detail(number: int, **detail: dict[str, float]) -> Sample:
    report = Report(requests=1, answered=1, lost=0, resets=0, stalls=0, outage_tcp_ms=1.0, outage_udp_ms=None,
                    quiet_median_ms=None, state_ok=True, detail=detail)  # fmt: skip
    rounds = (Round(n=1, dirty_pages=1000, bytes_sent=0, duration_ms=9.0),
              Round(n=2, dirty_pages=5, bytes_sent=4096 * 10, duration_ms=1.0))  # fmt: skip
    made = sample(OURS, number, 50.0)
    assert made.record is not None
    return msgspec.structs.replace(made, report=report, record=msgspec.structs.replace(made.record, rounds=rounds))


def test_the_write_rate_that_redis_reached_is_told() -> None:
    assert WRITE_RATE.of(with_detail(0, writer={"writes_per_s": 4987.5})) == 4987.5
    assert WRITE_RATE.of(with_detail(0)) is None


def test_the_share_without_kept_pictures_is_of_what_is_left() -> None:
    kept = {"remembered_bytes": 4096.0 * 900}
    assert SHARE.of(with_detail(0, user=kept)) == 1.0
    assert SHARE_LESS_KEPT.of(with_detail(0, user=kept)) == 10.0
    assert SHARE_LESS_KEPT.of(with_detail(0)) is None


def test_the_total_without_the_root_is_without_the_files_that_cross_ahead() -> None:
    made = with_detail(0)
    assert made.record is not None
    phases = (
        Phase(name="rounds.files", start_ms=10.0, duration_ms=3000.0),
        Phase(name="freeze", start_ms=3100.0, duration_ms=100.0),
    )
    moved = msgspec.structs.replace(made, record=msgspec.structs.replace(made.record, phases=phases))
    assert (TOTAL.of(moved), TOTAL_LESS_ROOT.of(moved)) == (3200.0, 200.0)


def test_the_total_of_the_steps_that_both_take_is_without_dumps_ahead() -> None:
    made = with_detail(0)
    assert made.record is not None

    def less_ahead(*phases: Phase) -> float | None:
        record = msgspec.structs.replace(made.record, phases=phases)
        return TOTAL_LESS_AHEAD.of(msgspec.structs.replace(made, record=record))

    freeze = Phase(name="freeze", start_ms=4000.0, duration_ms=100.0)
    files = Phase(name="rounds.files", start_ms=10.0, duration_ms=3000.0)
    rounds = Phase(name="rounds", start_ms=10.0, duration_ms=3600.0)
    assert less_ahead(files, rounds, freeze) == 3500.0
    script = (Phase(name=f"round.{n}.{part}", start_ms=n * 100.0, duration_ms=50.0) for n in (1, 2)
              for part in ("dump", "copy"))  # fmt: skip
    assert less_ahead(*script, freeze) == 3900.0


def test_a_promise_is_judged_by_our_rows() -> None:
    made = experiment()
    slow = [sample(OURS, number, 400.0 + number) for number in range(2)]
    slow += [sample(SCRIPT, number, 200.0 + number) for number in range(2)]
    (good,) = verdicts(made.figures[0], list(rows(SAMPLES).values()))
    (bad,) = verdicts(made.figures[0], list(rows(slow).values()))
    assert (good.judged, good.held, good.broken) == (1, 1, ())
    assert (bad.judged, bad.held, bad.broken) == (1, 0, ("blank tmpfs",))
    assert "NOT held by blank tmpfs" in text.verdict(bad)
    assert "nothing measured" in text.verdict(verdicts(made.figures[0], [])[0])


def section(samples: list[Sample], skipped: dict[str, str] | None = None) -> text.Section:
    figure = experiment().figures[0]
    found = list(rows(samples, skipped).values())
    return text.Section(figure, found, verdicts(figure, found))


def test_the_table_of_a_pipe() -> None:
    out = io.StringIO()
    text.show(Console(file=out, force_terminal=False), experiment(), section(SAMPLES))
    lines = out.getvalue().splitlines()
    (line,) = [line for line in lines if "downtime seen by the client" in line]
    assert "50 ms ± 25 ms" in line
    assert "200 ms ± 127 ms" in line
    assert "1.04 s ± 40 ms" in line
    assert "1/4.0" in line
    assert "1/20.9" in line
    assert not any("script" in line.split() for line in lines if line.startswith("blank")), "it stands beside ours"
    assert "  a note on this figure" in lines


def test_the_table_of_a_terminal_and_what_was_not_measured() -> None:
    out = io.StringIO()
    text.show(Console(file=out, force_terminal=True, width=200), experiment(), section([], {OURS.key: "not here"}))
    assert "Not measured: blank tmpfs: not here." in out.getvalue()


def test_the_report_is_markdown_with_table_and_picture() -> None:
    made = experiment()
    report = text.markdown(made, paper.load("fast"), "a machine", [section(SAMPLES)])
    assert "![a figure](figure-4.png)" in report
    assert "| blank | tmpfs | downtime seen by the client | 50 ms ± 25 ms |" in report
    assert "- Wanted: no slower than the script: held (1 of 1)." in report
    assert "- a note on all figures" in report


def heights(made: list[Row], colour: str) -> list[float]:
    """Of all bars of a colour, in all panels."""
    figure = experiment().figures[0]
    assert figure.drawing is not None
    canvas = picture.compose(experiment(), figure, figure.drawing, made)
    bars = [patch for axes in canvas.axes for patch in axes.patches if isinstance(patch, Rectangle)]
    return sorted(bar.get_height() for bar in bars if to_hex(bar.get_facecolor()).upper() == colour)


def test_bars_are_as_high_as_the_means() -> None:
    made = list(rows(SAMPLES).values())
    assert heights(made, picture.BLUE) == [50.0]
    assert heights(made, picture.VERMILION) == [200.0]
    assert heights(made, picture.GREY) == [1042.974]
    assert heights(made, picture.SKY) == [20.0, 100.0], "dump, ours and the script's"
    assert heights(made, picture.YELLOW) == [5.0, 5.0], "copy"


@pytest.mark.parametrize("samples", [SAMPLES, []], ids=["measured", "nothing"])
def test_the_picture_is_a_png(tmp_path: Path, samples: list[Sample]) -> None:
    figure = experiment().figures[0]
    assert figure.drawing is not None
    path = tmp_path / "picture.png"
    picture.draw(experiment(), figure, figure.drawing, list(rows(samples).values()), path)
    assert path.read_bytes().startswith(b"\x89PNG")
