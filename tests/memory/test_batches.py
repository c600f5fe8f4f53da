"""The pages of a tree in pieces, and what is left when it is enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whimbrel.memory.batches import Pieces
from whimbrel.memory.ranges import as_ranges
from whimbrel.memory.store import pages_of
from whimbrel.memory.tracker import ProcessPages
from whimbrel.model.units import PAGE_BYTES

sets_of_pages = st.lists(st.sets(st.integers(0, 60), max_size=20), max_size=3)


def tree(sets: list[set[int]]) -> list[ProcessPages]:
    return [
        ProcessPages(pid, pid, as_ranges((page * PAGE_BYTES, (page + 1) * PAGE_BYTES) for page in sorted(pages)))
        for pid, pages in enumerate(sets, 100)
    ]


def named(parts: list[ProcessPages]) -> list[tuple[int, int]]:
    return [(part.pid, page) for part in parts for page in pages_of(part.ranges).tolist()]


@given(sets=sets_of_pages, piece_pages=st.integers(1, 7), pieces=st.integers(0, 20))
def test_pieces_and_what_is_left_are_all_pages_each_once(sets: list[set[int]], piece_pages: int, pieces: int) -> None:
    dirty, taken = tree(sets), []
    turns = iter([piece_pages * PAGE_BYTES] * pieces)
    cut = Pieces(dirty, lambda: next(turns, 0))
    for piece in cut:
        assert 0 < piece.size_bytes <= piece_pages * PAGE_BYTES
        taken.append(piece)
    assert len(taken) <= pieces
    assert named(taken) + named(cut.left()) == named(dirty)
