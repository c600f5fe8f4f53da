"""The benchmark of files carries a real tree both ways, compares what arrived, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from whimbrel.bench import files
from whimbrel.bench.files import CHANGED, FIRST, OURS, PASSES, RSYNC, SAME, Carry, held
from whimbrel.bench.shaped import Ends
from whimbrel.model.errors import StepFailed


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(Path("/run/netns").glob(f"whimbrel-bench-{os.getpid()}-*"))
    assert not list(tmp_path.glob("whimbrel-files-*"))
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
def test_both_ways_carry_a_tree() -> None:
    text = StringIO()
    result = files.run(Console(file=text, width=200), size_bytes=3_000_000, runs=1)
    assert result["parameters"]["files"] > 10
    assert [(entry["workload"], entry["strategy"]) for entry in result["summary"]] == [
        (name, way) for name in PASSES for way in (OURS, RSYNC)
    ]
    assert all(entry["seconds"]["p50"] > 0 for entry in result["summary"])
    assert set(result["ratio"]) == {FIRST, SAME, CHANGED}
    assert result["promised"] in text.getvalue()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners")
def test_what_arrived_otherwise_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def careless(ends: Ends, source: Path, target: Path) -> Iterator[Carry]:
        (target / "file").write_text("y")
        yield lambda: 1.0

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("x")
    monkeypatch.setitem(files.WAYS, RSYNC, careless)
    with pytest.raises(StepFailed, match="the tree that rsync carried is not the one that was sent"):
        files.passes(RSYNC, Ends("", "", ""), tmp_path / "tree", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_slower_pass_fails_by_name() -> None:
    assert held({FIRST: 1.05, SAME: 0.3, CHANGED: 0.5}) == "PASS"
    assert (
        held({FIRST: 1.4, SAME: 0.3, CHANGED: 1.2}) == "FAIL: first 1.40 of rsync's time, changed 1.20 of rsync's time"
    )
