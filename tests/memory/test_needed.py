"""What a program waited for is kept in order, each page once, and found again among the pages that came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel.memory.needed import (
    MOST_PAGES,
    MOST_STRETCHES,
    NOTHING,
    Needs,
    Stretches,
    both,
    found_in,
    load,
    pack,
    unpack,
)

PIDS = range(1, 10)
stretches = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=8).map(
    lambda pairs: np.array(pairs, np.int64).reshape(-1, 2)
)


def pages_of(needed: Stretches) -> list[int]:
    return [page for first, count in needed.tolist() for page in range(first, first + count)]


@given(stretches, stretches)
def test_both_are_kept_in_order_and_each_page_once(first: Stretches, then: Stretches) -> None:
    assert pages_of(both(first, then)) == list(dict.fromkeys(pages_of(first) + pages_of(then)))


def test_no_more_is_kept_than_is_taken_in_again(tmp_path: Path) -> None:
    scattered = np.stack((np.arange(0, 4 * MOST_STRETCHES, 2), np.ones(2 * MOST_STRETCHES, int)), axis=1)
    huge = np.array([[10**6, 2 * MOST_PAGES]])
    needs = Needs(tmp_path / "needed", {})
    needs.keep({1: scattered, 7: huge})
    again = unpack(load(tmp_path / "needed", (1, 7)))
    assert np.array_equal(again[1], scattered[:MOST_STRETCHES])
    assert again[7].tolist() == [[10**6, MOST_PAGES]]


@given(stretches, st.sets(st.integers(0, 70)))
def test_those_that_came_are_found_among_them(needed: Stretches, came: set[int]) -> None:
    pages = np.array(sorted(came), np.uint64)
    found = [int(pages[at]) for first, count in found_in(pages, needed).tolist() for at in range(first, first + count)]
    assert found == [page for page in pages_of(needed) if page in came]


def test_what_was_waited_for_now_comes_before_what_was_known(tmp_path: Path) -> None:
    file = tmp_path / "needed"
    first = Needs(file, load(file, PIDS))
    assert first.of(1) is NOTHING
    first.keep({1: np.array([[10, 2], [4, 1]]), 5: np.array([[1, 1]])})
    then = Needs(file, load(file, PIDS))
    assert then.of(1).tolist() == [[10, 2], [4, 1]]
    then.keep({1: np.array([[20, 1], [11, 1]])})
    assert Needs(file, load(file, PIDS)).of(1).tolist() == [[20, 1], [11, 1], [10, 1], [4, 1]]
    assert Needs(file, load(file, PIDS)).of(5).tolist() == [[1, 1]], "who waited for nothing is not forgotten"
    assert load(file, [1, 9]).keys() == {1}, "but one that has ended is"


@pytest.mark.parametrize("content", [b"", b"\xff", b"\x81\x01\xc4\x07nonsens"], ids=["empty", "broken", "odd"])
def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "needed").write_bytes(content)
    assert load(tmp_path / "needed", PIDS) == {}


@pytest.mark.parametrize(
    "nonsense",
    [[[-1, 2]], [[5, -2]], [[0, MOST_PAGES + 1]], [[2**60, 1]], [[10, 2**62]] * 3 + [[10, 2**62 + 10]]],
    ids=["before the first", "less than none", "many", "beyond the last", "a sum that wraps"],
)
def test_nonsense_from_a_peer_is_refused(nonsense: list[list[int]]) -> None:
    with pytest.raises(ValueError):
        unpack(pack({1: np.array(nonsense)}))
