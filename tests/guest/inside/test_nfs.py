"""On a kernel with an NFS server: the lab's storage is NFS, as in paper `fast` III-C, and services move over it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.guest.inside.test_soft_dirty import move_and_look
from tests.migrate.conftest import EDGES, PREFIX, Running
from whimbrel.lab import nfs
from whimbrel.lab.commands import lab_down, lab_up
from whimbrel.lab.config import shared_directory
from whimbrel.network import netns
from whimbrel.storage.mounts import mount_at, mounts

pytestmark = pytest.mark.inside

SMALL = f"""
name = "small"
prefix = "{PREFIX}n-"
overlay_subnet = "10.77.0.0/16"
controller_subnet = "192.168.100.0/24"
[storage]
name = "{PREFIX}-nas"
subnet = "192.168.120.0/24"
[[edges]]
name = "{PREFIX}-n1"
subnet = "192.168.101.0/24"
[[edges]]
name = "{PREFIX}-n2"
subnet = "192.168.102.0/24"
[[gateways]]
name = "{PREFIX}-ngw"
subnet = "192.168.111.0/24"
overlay_address = "10.77.0.1"
access_subnet = "10.99.0.0/24"
"""


def test_here_the_storage_is_nfs(running: Running) -> None:
    assert nfs.lacking() == ""
    for edge in EDGES[:2]:
        found = mount_at(shared_directory(running.lab.state_dir(edge).parent, edge).resolve())
        assert found is not None
        assert found.kind == "nfs"


def test_a_service_moves_by_the_strategy_shared_over_nfs(running: Running) -> None:
    move_and_look(running, "shared")


def test_what_one_edge_wrote_another_sees_and_the_lab_leaves_nothing(tmp_path: Path) -> None:
    file, directory = tmp_path / "small.toml", tmp_path / "lab"
    file.write_text(SMALL)
    status = lab_up(file, lab_dir=directory)
    namespace = Path("/run/netns", next(node.namespace for node in status.nodes if node.role == "storage"))
    inode = netns.inode(namespace)
    try:
        here, there = (shared_directory(directory, f"{PREFIX}-n{number}") for number in (1, 2))
        for text in ("first", "second and longer"):
            (here / "file").write_text(text)
            assert (there / "file").read_text() == text
    finally:
        lab_down(lab_dir=directory)
    assert not [mount for mount in mounts() if directory.resolve() in mount.point.parents]
    assert not namespace.exists()
    left = subprocess.run(["lsns", "--type", "net", "--noheadings", "--output", "NS"], capture_output=True, text=True)
    assert str(inode) not in left.stdout.split(), "the server's threads hold it"
