"""Parts that a user adds in one file: found in a folder of ours, and under an entry point of any installed package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from whimbrel.model.errors import BadInput


class Named(Protocol):
    @property
    def name(self) -> str: ...


Part = TypeVar("Part", bound=Named)


def find(package: str, folder: Iterable[str], attribute: str, kind: type[Part], group: str) -> dict[str, Part]:
    """All parts by name, in alphabetical order: `attribute` of every module in `folder` (the package's ``__path__``)
    that has one of this `kind`, and what stands under the entry point `group`. Raises BadInput for an entry point
    that is something else."""
    found: list[Part] = []
    for module in pkgutil.iter_modules(folder):
        part = getattr(importlib.import_module(f"{package}.{module.name}"), attribute, None)
        if isinstance(part, kind):
            found.append(part)
    for point in entry_points(group=group):
        part = point.load()
        if not isinstance(part, kind):
            raise BadInput(
                f"entry point {point.name} of {group} is no {kind.__name__}: let it name one ({point.value})"
            )
        found.append(part)
    return {part.name: part for part in sorted(found, key=lambda part: part.name)}
