"""The samples of a run on disk, so that a broken run goes on where it ended."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from whimbrel.experiments.model import Sample
from whimbrel.model.errors import BadInput

FILE = "samples.json"
SAME = ("experiment", "quick", "link_rate_bps", "machine")


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """`machine` as `bench.report.machine` describes it; `seed` makes the order of the cells."""

    experiment: str
    quick: bool
    seed: int
    link_rate_bps: float
    machine: dict[str, Any]
    samples: tuple[Sample, ...] = ()

    def plus(self, series: Iterable[Sample]) -> Samples:
        return msgspec.structs.replace(self, samples=(*self.samples, *series))

    def of(self, cell: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.cell == cell]

    def done(self) -> set[tuple[str, int]]:
        """(cell, repetition) of what is there."""
        return {(sample.cell, sample.repetition) for sample in self.samples}


def load_or_begin(out: Path, fresh: Samples) -> Samples:
    """What the folder holds of the same experiment on the same machine, else `fresh`.

    Raises BadInput when the folder holds samples that may not be mixed with this run's.
    """
    path = out / FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Samples)
    except FileNotFoundError:
        return fresh
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}): remove it, or name another folder by --out") from error
    for field in SAME:
        ours, theirs = getattr(fresh, field), getattr(found, field)
        if ours != theirs:
            raise BadInput(
                f"{path} has samples of another run ({field.replace('_', ' ')} {_difference(theirs, ours)}): "
                "remove it, or name another folder by --out"
            )
    return found


def _difference(theirs: object, ours: object) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys: Iterable[str] = (key for key in ours if theirs.get(key) != ours[key])
        return ", ".join(f"{key} {theirs.get(key)!r}, now {ours[key]!r}" for key in keys)
    return f"{theirs!r}, now {ours!r}"


def save(out: Path, samples: Samples) -> None:
    """Whole or not at all: a run that is killed while it writes keeps what it had."""
    fresh = out / f".{FILE}.new"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(samples), indent=1))
    os.replace(fresh, out / FILE)
