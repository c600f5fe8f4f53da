"""What only `make test-thorough` runs: tests that repeat another, with one more strategy, victim or moment."""

from __future__ import annotations

import os
from typing import Any

import pytest

MANY = "WHIMBREL_TEST_THOROUGH" in os.environ
"""Generators of requests make many."""


def thorough(*cases: Any) -> list[Any]:
    """These cases of a parametrized test: values, or tuples of values."""
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*one, marks=pytest.mark.thorough) for one in values]
