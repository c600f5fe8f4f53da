"""The papers' numbers are the papers'. With their texts at hand (a folder in $WHIMBREL_PAPERS) the quotations are
looked up in them too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from whimbrel.experiments import paper
from whimbrel.experiments.catalogue import experiments
from whimbrel.experiments.model import By, PaperValue
from whimbrel.experiments.rows import factor_of

KEYS = [path.stem for path in (Path(paper.__file__).parent / "papers").glob("*.toml")]
VALUES = [(key, value) for key in KEYS for value in paper.load(key).value]
TEXTS = os.environ.get("WHIMBREL_PAPERS", "")


def name_of(case: object) -> str:
    if isinstance(case, PaperValue):
        return f"{case.figure}-{case.workload}-{case.strategy}-{case.quantity}"
    return str(case)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_there_are_the_numbers_of_three_papers() -> None:
    counts = {key: len(paper.load(key).value) for key in KEYS}
    assert counts == {"fast": 18, "train": 19, "coordinated": 12, "own": 0}


@pytest.mark.parametrize(("key", "value"), VALUES, ids=name_of)
def test_each_number_stands_in_its_quotation(key: str, value: PaperValue) -> None:
    quoted = paper.numbers(value.quote)
    for number in (value.mean, value.sd, value.ci95):
        assert number is None or number in quoted, f"{number} is not in {value.quote!r}"


@pytest.mark.skipif(not TEXTS, reason="WHIMBREL_PAPERS names no folder with the papers' texts")
@pytest.mark.parametrize(("key", "value"), VALUES, ids=name_of)
def test_each_quotation_stands_in_a_paper(key: str, value: PaperValue) -> None:
    texts = [squeezed(path.read_text()) for path in Path(TEXTS).glob("*.txt")]
    assert any(squeezed(value.quote) in text for text in texts), value.quote


@pytest.mark.parametrize(("key", "value"), VALUES, ids=name_of)
def test_each_number_is_shown_by_an_experiment(key: str, value: PaperValue) -> None:
    """In the figure, beside the cell and in the unit of what we measure."""
    shown = [
        quantity
        for experiment in experiments().values()
        if experiment.paper == key
        for figure in experiment.figures
        if figure.key == value.figure
        for cell in figure.cells
        if (cell.name, cell.strategy, cell.by) == (value.workload, value.strategy, By.WHIMBREL)
        for quantity in figure.quantities
        if quantity.key == value.quantity
    ]
    assert len(shown) == 1
    assert factor_of(value, shown[0]) > 0


def test_numbers_of_a_text() -> None:
    assert paper.numbers("16,405.157 ms, 52.790ms, 96.0% of 1,024") == {16405.157, 52.79, 96.0, 1024.0}
