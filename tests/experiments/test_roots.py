"""A root file system of a paper's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from whimbrel.bench import roots
from whimbrel.bench.roots import empty, fill, size_of
from whimbrel.experiments.known.fast import EXPERIMENT
from whimbrel.model.errors import Refused


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "system"
    for number in range(30):
        path = folder / f"part-{number % 3}" / f"{number:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 1000)
    (folder / "part-0/link").symlink_to("00")
    monkeypatch.setattr(roots, "SOURCES", (folder,))
    return folder


def test_a_root_has_the_size_that_was_asked_for_its_own_files_counted(tmp_path: Path, system: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "program").write_bytes(b"p" * 4000)
    fill(root, 20_000)
    assert size_of(root) == 20_000
    filling = [path for path in (root / roots.PLACE).rglob("*") if path.is_file()]
    assert len(filling) == 16
    source = Path("/", filling[0].relative_to(root / roots.PLACE))
    assert filling[0].read_bytes() == source.read_bytes()
    fill(root, 20_000)
    assert size_of(root) == 20_000
    empty(root)
    assert size_of(root) == 4000


def test_a_machine_with_too_few_files_says_so(tmp_path: Path, system: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(Refused, match="too little to fill a root"):
        fill(tmp_path / "root", 100_000)


def test_the_papers_containers_have_the_papers_sizes() -> None:
    sizes = {(cell.workload, cell.root_bytes) for cell in EXPERIMENT.cells}
    assert sizes == {("blank", 350_000_000), ("video", 590_000_000)}
