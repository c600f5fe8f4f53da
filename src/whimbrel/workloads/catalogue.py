"""Which workloads there are, and how a name becomes an image."""

from __future__ import annotations

from pathlib import Path

from whimbrel.model.errors import BadInput
from whimbrel.workloads.builder import CACHE, Image, Progress, build
from whimbrel.workloads.recipe import FILE, Recipe, load_recipe

CATALOGUE = Path(__file__).parent
PREFIX = "workload:"


def names() -> list[str]:
    return sorted(path.parent.name for path in CATALOGUE.glob(f"*/{FILE}"))


def find(name: str) -> Recipe:
    """The recipe of a workload. Raises BadInput for a name that is none, and for a recipe that is wrong."""
    if name not in names():
        raise BadInput(f"there is no workload {name!r}: choose from {', '.join(names())}")
    return load_recipe(CATALOGUE / name)


def build_workload(name: str, cache: Path = CACHE, *, progress: Progress = print) -> Image:
    """Build a workload's image, or find it in the cache. Raises BadInput or Refused."""
    return build(find(name), cache, progress=progress)
