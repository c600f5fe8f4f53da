"""`bench dashboard`: a small run of the real thing, and the verdict."""

from __future__ import annotations

import shutil
from io import StringIO

import pytest
from rich.console import Console

from whimbrel.bench import dashboard
from whimbrel.model.errors import Refused


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed: scripts/setup --engines")
@pytest.mark.thorough
def test_the_page_is_measured_while_users_walk() -> None:
    text = StringIO()
    result = dashboard.run(Console(file=text, width=200), users=30, sites=3, seconds=1.0)
    (row,) = result["summary"]
    assert (row["users"], row["nodes"]) == (30, 6)
    assert 0 < row["script_ms_per_s"] < row["work_ms_per_s"]
    assert 0 < row["first_paint_ms"] <= row["slowest_paint_ms"]
    assert "first paint" in text.getvalue()


def test_without_a_browser_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refused, match="--engines"):
        dashboard.browser_program()
