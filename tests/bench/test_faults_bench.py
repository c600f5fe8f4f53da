"""`bench faults`: real processes, real faults, each page checked by who touches it."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from rich.console import Console

from whimbrel.bench import faults
from whimbrel.memory.store import PageStore
from whimbrel.model.errors import StepFailed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a userfaultfd that sees all faults needs root")


def test_each_way_touches_as_often_and_the_table_compares_them() -> None:
    out = io.StringIO()
    result = faults.run(Console(file=out, width=200), size_bytes=8 << 20, touches=100, runs=2)
    by_way = {entry["strategy"]: entry for entry in result["summary"]}
    assert list(by_way) == list(faults.WAYS)
    assert by_way["kernel"]["ratio"] == 1
    assert "faults" not in by_way["kernel"]
    assert by_way["served"]["faults"] == 100, "pages are far apart, and nobody else brings them"
    assert by_way["filled"]["faults"] <= 100
    assert all(entry["fault_ms"] > 0 for entry in (by_way["served"], by_way["filled"]) if entry["faults"])
    assert by_way["served"]["ratio"] > 1, "the kernel's own fault asks nobody"
    assert all(way in out.getvalue() for way in faults.WAYS)


def test_a_wrong_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    take = PageStore.take

    def spoil(store: PageStore, pages: int) -> None:
        take(store, pages)
        np.frombuffer(store.map, np.uint8, pages << 12, 1 << 12)[:] = 0

    monkeypatch.setattr(PageStore, "take", spoil)
    with pytest.raises(StepFailed, match="50 of 50 pages were wrong"):
        faults.touched(faults.SERVED, pages=1000, touches=50)
