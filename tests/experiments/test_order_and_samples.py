"""The order of the runs, and going on with a run that broke."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from made import OURS, SCRIPT, failed, sample

from whimbrel.experiments.model import Cell
from whimbrel.experiments.order import turns
from whimbrel.experiments.samples import FILE, Samples, load_or_begin, save
from whimbrel.model.errors import BadInput

CELLS = [Cell(workload, strategy) for workload in ("a", "b", "c") for strategy in ("x", "y")]


def fresh(**other: object) -> Samples:
    facts = {"experiment": "made", "quick": False, "seed": 1, "link_rate_bps": 1e9, "machine": {"cpus": 2}, **other}
    return Samples(**facts)  # type: ignore[arg-type]


def test_every_cell_comes_once_in_each_repetition_in_an_order_of_its_own() -> None:
    found = list(turns(CELLS, 5, seed=1))
    orders = [[turn.cell.key for turn in found if turn.repetition == number] for number in range(5)]
    assert [turn.repetition for turn in found] == sorted(turn.repetition for turn in found)
    for order in orders:
        assert sorted(order) == sorted(cell.key for cell in CELLS)
    assert len({tuple(order) for order in orders}) > 1


def test_the_seed_makes_the_order() -> None:
    assert list(turns(CELLS, 3, seed=1)) == list(turns(CELLS, 3, seed=1))
    assert list(turns(CELLS, 3, seed=1)) != list(turns(CELLS, 3, seed=2))


def test_what_is_done_is_left_out_and_the_rest_keeps_its_order() -> None:
    whole = list(turns(CELLS, 3, seed=7))
    for cut in range(len(whole)):
        done = {(turn.cell.key, turn.repetition) for turn in whole[:cut]}
        assert list(turns(CELLS, 3, 7, done)) == whole[cut:]


def test_both_nodes_are_begun_on() -> None:
    starts = {repetition: {turn.start for turn in group} for repetition, group in
              itertools.groupby(turns(CELLS, 2, 1), lambda turn: turn.repetition)}  # fmt: skip
    assert starts == {0: {0}, 1: {1}}


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    first = load_or_begin(tmp_path, fresh()).plus([sample(OURS, 0, 50.0), sample(SCRIPT, 0, 90.0)])
    save(tmp_path, first)
    again = load_or_begin(tmp_path, fresh(seed=99))
    assert again == first
    assert again.seed == 1, "the order is that of the run that is gone on with"
    assert again.done() == {(OURS.key, 0), (SCRIPT.key, 0)}
    assert [left.cell.key for left in turns([OURS, SCRIPT], 2, again.seed, again.done())].count(OURS.key) == 1


def test_a_failure_is_kept_as_one(tmp_path: Path) -> None:
    save(tmp_path, fresh().plus([failed(OURS, 0, "no such luck")]))
    (found,) = load_or_begin(tmp_path, fresh()).of(OURS.key)
    assert (found.good, found.error) == (False, "no such luck")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"experiment": "fast"}, "experiment"),
        ({"quick": True}, "quick"),
        ({"link_rate_bps": 1e8}, "link rate bps"),
        ({"machine": {"cpus": 64}}, "cpus 64, now 2"),
    ],
)
def test_samples_of_another_run_are_not_mixed_in(tmp_path: Path, other: dict[str, object], named: str) -> None:
    save(tmp_path, fresh(**other))
    with pytest.raises(BadInput, match=named):
        load_or_begin(tmp_path, fresh())


def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(BadInput, match=r"samples\.json cannot be read.*--out"):
        load_or_begin(tmp_path, fresh())


def test_what_is_written_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, fresh().plus([sample(OURS, 0, 50.0)]))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, fresh())
    assert len(load_or_begin(tmp_path, fresh()).samples) == 1
