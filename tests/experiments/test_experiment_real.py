"""One small experiment from beginning to end: a lab, services, migrations by Whimbrel and by the scripts, results."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from marks import MANY
from whimbrel.experiments import movers, runner
from whimbrel.experiments.catalogue import find
from whimbrel.experiments.model import By, Cell, Experiment, Link
from whimbrel.experiments.runner import Options, run
from whimbrel.experiments.samples import FILE
from whimbrel.experiments.site import Place, Site, site
from whimbrel.model.errors import BadInput

pytestmark = pytest.mark.real
PREFIX = os.environ.get("WHIMBREL_TEST_LAB", "te") + "x"
PLACE = Place(PREFIX, Path(f"/var/lib/whimbrel-tests/{PREFIX}/experiment"))
LINK = Link(rate_bps=500e6)
OURS = Cell("blank", "hybrid", work_s=0.2, moves=2)
TMPFS, DISKLESS = (Cell("blank", strategy, by=By.SCRIPT, work_s=0.2) for strategy in ("tmpfs", "diskless"))
REFUSED = Cell("blank", "hybrid", label="refused", settings={"": "of no name"})
ELSEWHERE = Cell("no-such-workload", "hybrid", label="elsewhere")
SHARED_ROOT, TMPFS_ROOT = (Cell("blank", name, work_s=0.2, root_bytes=8_000_000) for name in ("shared", "tmpfs"))
MOVED = (OURS, TMPFS, *([DISKLESS] if MANY else []))
CELLS = (*MOVED, REFUSED, ELSEWHERE, SHARED_ROOT, TMPFS_ROOT)


def small() -> Experiment:
    whole = find("fast")
    figure = next(figure for figure in whole.figures if figure.key == "figure-7")
    return replace(whole, figures=(replace(figure, cells=CELLS),))


def queues(where: Site) -> list[str]:
    """What shapes the links of the edges, at both ends."""
    router = next(node for node in where.status.nodes if node.role == "router")
    ends = [(node.namespace, "eth0") for node in where.status.nodes if node.role == "edge"]
    ends += [(router.namespace, edge) for edge in where.edges]
    argvs = [["tc", "-n", inside, "qdisc", "show", "dev", device] for inside, device in ends]
    return [subprocess.run(argv, capture_output=True, text=True, check=True).stdout for argv in argvs]


@dataclass(frozen=True)
class Ran:
    """What an experiment left in a folder; `queues` were seen while its lab was up."""

    folder: Path
    queues: list[str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    if os.geteuid() != 0:
        pytest.skip("moving containers needs root")
    folder = tmp_path_factory.mktemp("experiment")
    seen: list[str] = []

    @contextmanager
    def watched(place: Place, link: Link, tell: Callable[[str], None], *, storage: bool) -> Iterator[Site]:
        with site(place, link, tell, storage=storage) as where:
            seen.extend(queues(where))
            yield where

    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "site", watched)
        patch.setattr(movers, "QUIET_S", 0.3)  # nothing is held against the quiet phase here
        run(small(), Options(folder, runs=1, place=PLACE, link=LINK), console)
    (folder / "said.txt").write_text(console.file.getvalue())  # type: ignore[attr-defined]
    return Ran(folder, seen)


@pytest.fixture(scope="module")
def out(ran: Ran) -> Path:
    return ran.folder


def samples(out: Path, cell: Cell) -> list[dict[str, Any]]:
    return [each for each in msgspec.json.decode((out / FILE).read_bytes())["samples"] if each["cell"] == cell.key]


def test_whimbrel_and_the_scripts_moved_it(out: Path) -> None:
    found = [each for cell in MOVED for each in samples(out, cell)]
    assert [each["error"] for each in found] == [""] * (len(MOVED) + 1), "two moves of ours, one of each script"
    for each in found:
        record = each["record"]
        assert isinstance(record, dict)
        assert (record["outcome"], record["state_ok"], record["resets"]) == ("done", True, 0)
        assert record["outage_tcp_ms"] > 0


def test_a_root_crosses_with_tmpfs_and_stays_on_the_storage_with_shared(out: Path) -> None:
    """Paper `fast`, III-B1 and III-C."""
    ((shared,), (tmpfs,)) = (samples(out, cell) for cell in (SHARED_ROOT, TMPFS_ROOT))
    assert (shared["error"], tmpfs["error"]) == ("", "")
    crossed = {name: one["record"]["file_bytes"] for name, one in (("shared", shared), ("tmpfs", tmpfs))}
    assert crossed["tmpfs"] > 4_000_000
    assert crossed["shared"] < 400_000


def test_a_script_tells_its_steps_and_what_it_cannot_do(out: Path) -> None:
    (tmpfs,) = samples(out, TMPFS)
    record = tmpfs["record"]
    assert isinstance(record, dict)
    steps = [phase["name"] for phase in record["phases"]]
    assert steps[:2] == ["prepare", "rootfs"]
    assert steps[-3:] == ["freeze.dump", "freeze.copy", "freeze.restore"]
    assert ("round.1.dump" in steps) != ("no dump ahead of the freeze" in record["reason"])
    assert record["rounds"][-1]["dirty_pages"] > 0


def test_a_failure_and_what_cannot_be_measured_are_told(out: Path) -> None:
    (refused,) = samples(out, REFUSED)
    assert "environment setting '=of no name' is not valid" in refused["error"]
    assert samples(out, ELSEWHERE) == []
    said = (out / "said.txt").read_text()
    assert "elsewhere hybrid" in said
    assert "no workload 'no-such-workload'" in said


def test_the_documents_have_the_form_of_the_design(out: Path) -> None:
    for name in ("figure-7.json", "fast.json"):
        document = msgspec.json.decode((out / name).read_bytes())
        assert (document["paper"], document["figure"]) == ("fast", "Figure 7")
        assert document["machine"]["cpus"] == os.cpu_count()
        rows = {(row["workload"], row["strategy"], row["by"], row["quantity"]): row for row in document["rows"]}
        row = rows["blank", "hybrid", "whimbrel", "total"]
        assert row["n"] == 2
        assert row["ours"] > 0
        assert row["sd"] >= 0
        assert {"paper", "ci95", "baseline", "ratio"} <= row.keys()
        assert rows["refused", "hybrid", "whimbrel", "total"]["failed"] == 1
    assert (out / "figure-7.png").read_bytes().startswith(b"\x89PNG")
    assert "Figure 7" in (out / "report.md").read_text()


def test_what_is_done_is_not_done_again(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (out / FILE).read_bytes()
    monkeypatch.setattr("whimbrel.experiments.runner.site", None)  # a lab would be an error now
    document = run(small(), Options(out, runs=1, place=PLACE, link=LINK), Console(file=io.StringIO()))
    assert (out / FILE).read_bytes() == before
    assert {row["strategy"] for row in document["rows"]} > {"hybrid"}
    few = Options(tmp_path / "few", runs=1, place=PLACE, link=LINK, strategies=frozenset({"hybrid"}))
    shutil.copytree(out, few.out)
    document = run(small(), few, Console(file=io.StringIO()))
    assert {row["strategy"] for row in document["rows"]} == {"hybrid"}


def test_nothing_is_left(out: Path) -> None:
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"{PREFIX}-{PREFIX}-1" not in spaces
    mounts = Path("/proc/self/mountinfo").read_text()
    assert "whimbrel-script-" not in mounts
    assert str(PLACE.lab_dir) not in mounts


def test_links_have_the_rate_that_was_asked_for(ran: Ran) -> None:
    assert len(ran.queues) == 4
    for said in ran.queues:
        assert "tbf" in said
        assert "rate 500Mbit" in said


def test_a_folder_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"--out .* cannot be made"):
        run(small(), Options(tmp_path / "file"), Console(file=io.StringIO()))
