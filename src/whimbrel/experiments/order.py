"""In which order cells are measured. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from whimbrel.experiments.model import Cell


@dataclass(frozen=True)
class Turn:
    cell: Cell
    repetition: int
    start: int
    """Which of the two nodes it starts on: by turns, so that no node's peculiarity is a strategy's."""


def turns(cells: Sequence[Cell], runs: int, seed: int, done: Collection[tuple[str, int]] = ()) -> Iterator[Turn]:
    """Every cell once in each repetition, each repetition in a random order of its own: what drifts on the machine
    meets all cells alike. The same seed gives the same order, with or without what is `done`."""
    for repetition in range(runs):
        shuffled = list(cells)
        random.Random(f"{seed}/{repetition}").shuffle(shuffled)
        for cell in shuffled:
            if (cell.key, repetition) not in done:
                yield Turn(cell, repetition, repetition % 2)
