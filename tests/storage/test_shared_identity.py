"""Which shared file system is it, is it mounted, and does a dead one hang whoever asks?"""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared_mounts import Shared
from whimbrel.model.errors import BadInput, Refused, Unreachable
from whimbrel.storage.shared.helper import Helper
from whimbrel.storage.shared.marker import FOLDER, identify
from whimbrel.storage.shared.place import SharedStorage
from whimbrel.storage.shared.probe import probe


def test_all_nodes_that_look_at_once_agree_on_the_identity(shared: Shared) -> None:
    """Also when none was there: each makes one of its own, and one of them wins."""
    for attempt in range(5):
        name = f"fresh-{attempt}"
        (shared.data / name).mkdir()
        folders = [mount / name for mount in (shared.one, shared.two)] * 8
        with ThreadPoolExecutor(16) as pool:
            found = set(pool.map(identify, folders))
        assert len(found) == 1
        assert os.listdir(shared.data / name) == [FOLDER], "the losers left nothing"
        assert identify(shared.data / name) == found.pop()


def test_a_damaged_identity_is_told(shared: Shared) -> None:
    place = shared.data / "damaged"
    (place / FOLDER).mkdir(parents=True)
    (place / FOLDER / "id").write_text("hello")
    with pytest.raises(BadInput, match=r"holds no identity but 'hello': remove"):
        identify(shared.one / "damaged")


def test_a_look_tells_what_is_there(shared: Shared) -> None:
    one, two = probe(str(shared.one), "node-1"), probe(str(shared.two), "node-2")
    assert one["id"] == two["id"]
    assert one["kind"] == "fuse.sshfs"
    assert one["roots_problem"] == ""
    assert one["free_bytes"] > 0
    assert sorted(os.listdir(shared.data / FOLDER / "nodes")) == ["node-1", "node-2"], "no scratch file stays"


def test_a_plain_folder_is_not_taken_for_a_mount(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"is on this machine's own \w+ at .*: mount the shared file system there"):
        probe(str(tmp_path), "node-1")
    with pytest.raises(Refused, match="is not there: make it"):
        probe(str(tmp_path / "nowhere"), "node-1")
    assert list(tmp_path.iterdir()) == []


def test_a_mount_without_other_users_can_hold_no_roots(shared: Shared, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    source = next(line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(shared.one) in line)
    arguments = shared.clients[0].args
    assert isinstance(arguments, list)
    options = str(arguments[-1])
    port = next(word for word in options.split(",") if word.startswith("directport="))
    subprocess.run(["sshfs", source, str(mine), "-o", port], check=True)
    try:
        assert "mounted without allow_other" in probe(str(mine), "node-3")["roots_problem"]
    finally:
        subprocess.run(["fusermount3", "-u", str(mine)], check=True)


def test_a_dead_file_system_holds_up_nobody_and_comes_back(shared: Shared) -> None:
    storage = SharedStorage(shared.one, "node-1")
    helper = storage.helper()
    identity = helper.call("probe", timeout_s=20, directory=str(shared.one), node="node-1")["id"]
    shared.hang(shared.one)
    try:
        started_s = time.monotonic()
        with pytest.raises(Unreachable, match=r"does not answer \(probe, 0.3 s\): look after its server"):
            helper.call("probe", timeout_s=0.3, directory=str(shared.one), node="node-1")
        assert time.monotonic() - started_s < 10
        assert not helper.alive
        with pytest.raises(Unreachable), storage.helper() as other:
            other.call("describe", timeout_s=0.3, directory=str(shared.one), name="x")
    finally:
        shared.go_on(shared.one)
    with storage.helper() as again:
        assert again.call("probe", timeout_s=20, directory=str(shared.one), node="node-1")["id"] == identity


def test_what_goes_wrong_in_the_helper_is_one_line(shared: Shared) -> None:
    with Helper(str(shared.one)) as helper:
        with pytest.raises(Refused, match="has no root file system of nobody"):
            helper.call("describe", timeout_s=20, directory=str(shared.one), name="nobody")
        assert helper.alive, "it goes on after an error"
