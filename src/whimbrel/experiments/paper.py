"""The papers' numbers, read from `papers/*.toml`."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import msgspec

from whimbrel.experiments.model import PaperValue

_NUMBER = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")


class Paper(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`setting`: on what the paper measured, in one line."""

    key: str
    title: str
    setting: str
    value: tuple[PaperValue, ...]

    def find(self, figure: str, workload: str, strategy: str, quantity: str) -> PaperValue | None:
        wanted = (figure, workload, strategy, quantity)
        values = (each for each in self.value if (each.figure, each.workload, each.strategy, each.quantity) == wanted)
        return next(values, None)


@cache
def load(key: str) -> Paper:
    """Raises FileNotFoundError for a paper that has no file; the tests read them all."""
    text = resources.files("whimbrel.experiments").joinpath(f"papers/{key}.toml").read_bytes()
    return msgspec.toml.decode(text, type=Paper)


def numbers(quote: str) -> set[float]:
    """All numbers of a text, thousands separators removed."""
    return {float(number.replace(",", "")) for number in _NUMBER.findall(quote)}
