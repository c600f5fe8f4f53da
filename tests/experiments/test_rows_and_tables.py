"""From samples to rows, tables and pictures."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from made import OURS, SCRIPT, experiment, failed, sample
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from rich.console import Console

from whimbrel.experiments import paper, picture, text
from whimbrel.experiments.model import Row, Sample
from whimbrel.experiments.rows import no_slower, rows_of, verdicts

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
    ("ours", "half", "held"),
    [(100.0, 1.0, True), (210.0, 1.0, False), (210.0, 15.0, True), (None, None, None)],
)
def test_no_slower_than_the_baseline_within_what_the_samples_tell(
    ours: float | None, half: float | None, held: bool | None
) -> None:
    row = Row(figure="", workload="", strategy="", by="", quantity="", label="", unit="ms",
              ours=ours, ci95=half, baseline=200.0, baseline_ci95=5.0)  # fmt: skip
    assert no_slower(row) is held


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
