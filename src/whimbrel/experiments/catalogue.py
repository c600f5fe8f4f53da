"""Which experiments there are: every module of `known` that holds an `Experiment` named ``EXPERIMENT``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from whimbrel.experiments import known
from whimbrel.experiments.model import Experiment
from whimbrel.model.errors import BadInput


@cache
def experiments() -> dict[str, Experiment]:
    found = []
    for module in pkgutil.iter_modules(known.__path__):
        experiment = getattr(importlib.import_module(f"{known.__name__}.{module.name}"), "EXPERIMENT", None)
        if isinstance(experiment, Experiment):
            found.append(experiment)
    return {experiment.name: experiment for experiment in found}


def find(name: str) -> Experiment:
    """Raises BadInput for a name that is none."""
    if name not in experiments():
        raise BadInput(f"there is no experiment {name!r}: choose from {', '.join(experiments())}")
    return experiments()[name]
