"""Root file systems on shared storage: filled whole, owned by one node, seen by the next as the last one left them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_mounts import INSIDE, Shared
from whimbrel.model.errors import BadInput, Refused
from whimbrel.storage.mounts import mounts
from whimbrel.storage.shared.place import SharedStorage
from whimbrel.storage.shared.root import SharedRoot


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image")
    for folder in ("etc", "dev", "tmp", "run/app", "usr/bin"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "dev/planted").write_text("hidden")
    (root / "run/app/seed").write_text("of the image")
    (root / "etc/name").write_text("image")
    os.chown(root / "etc/name", 1000, 1001)
    (root / "usr/bin/tool").write_bytes(b"\x7f" * 3_000_000)
    (root / "usr/bin/tool").chmod(0o4755)
    os.link(root / "usr/bin/tool", root / "usr/bin/same")
    os.symlink("/usr/bin/tool", root / "link")
    os.symlink("nowhere", root / "etc/dangling")
    os.mkfifo(root / "etc/none-over-sftp")
    (root / "etc/none-over-sftp").unlink()
    os.utime(root / "etc", (1_000_000_000, 1_000_000_000))
    return root


@pytest.fixture
def nodes(shared: Shared, tmp_path: Path) -> Iterator[tuple[SharedRoot, SharedRoot]]:
    """The same service on two nodes."""
    pair = []
    for name, mount in (("a", shared.one), ("b", shared.two)):
        folder = tmp_path / name / "echo"
        folder.mkdir(parents=True)
        storage = SharedStorage(mount, f"node-{name}")
        with storage.helper() as helper:
            helper.call("probe", timeout_s=20, directory=str(mount), node=f"node-{name}")
        pair.append(SharedRoot(folder, storage, f"node-{name}"))
    try:
        yield pair[0], pair[1]
    finally:
        for root in pair:
            root.remove()
        assert not (shared.data / "whimbrel/services/echo").exists()
        assert os.listdir(shared.data / "whimbrel/services") == []
        assert [mount.point for mount in mounts() if tmp_path in mount.point.parents] == []


def test_an_image_is_copied_whole_but_for_what_is_the_nodes_own(
    nodes: tuple[SharedRoot, SharedRoot], image: Path
) -> None:
    root, _ = nodes
    root.fill(image, {"argv": ["/usr/bin/tool"]})
    root.mount("node-a", whole=True)
    inside = root.rootfs
    status = (inside / "etc/name").stat()
    assert (status.st_uid, status.st_gid, (inside / "etc/name").read_text()) == (1000, 1001, "image")
    tool = (inside / "usr/bin/tool").stat()
    assert (stat.S_IMODE(tool.st_mode), tool.st_size) == (0o4755, 3_000_000)
    assert (inside / "usr/bin/same").read_bytes() == (image / "usr/bin/tool").read_bytes()
    assert os.readlink(inside / "link") == "/usr/bin/tool"
    assert os.readlink(inside / "etc/dangling") == "nowhere"
    assert (inside / "etc").stat().st_mtime == 1_000_000_000
    assert (inside / "dev/null").is_char_device()
    assert not (inside / "dev/planted").exists()
    assert stat.S_IMODE((inside / "tmp").stat().st_mode) == 0o1777
    assert (inside / "run/app/seed").read_text() == "of the image"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{os.open(inside / 'run', os.O_PATH)}/ctl")
    assert stat.S_ISSOCK((root.upper / "run/ctl").stat().st_mode), "no socket has to live on the shared file system"


def test_the_next_node_sees_the_same_root_without_a_copy(
    nodes: tuple[SharedRoot, SharedRoot], image: Path, shared: Shared
) -> None:
    here, there = nodes
    here.fill(image, {"argv": ["/usr/bin/tool"]})
    here.mount("node-a", whole=True)
    (here.rootfs / "etc/name").write_text("changed by the service")
    assert there.expect() == {"argv": ["/usr/bin/tool"]}
    with pytest.raises(Refused, match="belongs to node node-a, not to node-b"):
        there.mount("node-b", whole=False)
    there.mount("node-a", whole=False)
    assert (there.rootfs / "etc/name").read_text() == "changed by the service"
    there.remove()
    assert (here.rootfs / "etc/name").exists(), "only its owner deletes it"
    there.expect()
    there.mount("node-a", whole=False)
    there.claim()
    here.hand_over("node-b")
    assert (there.rootfs / "etc/name").read_text() == "changed by the service"
    assert (shared.data / "whimbrel/services/echo/owner").read_text() == "node-b"


def test_a_name_that_another_node_uses_is_refused_and_left_alone(
    nodes: tuple[SharedRoot, SharedRoot], image: Path
) -> None:
    here, there = nodes
    here.fill(image, {})
    with pytest.raises(BadInput, match="has a service echo already, of node node-a: choose another name"):
        there.fill(image, {})
    there.remove()
    here.mount("node-a", whole=False)
    assert (here.rootfs / "etc/name").read_text() == "image"


def test_what_a_lost_node_left_under_its_own_name_is_replaced(
    nodes: tuple[SharedRoot, SharedRoot], image: Path, shared: Shared
) -> None:
    here, _ = nodes
    here.fill(image, {})
    (shared.data / "whimbrel/services/echo/root/etc/old").touch()
    half: Path = shared.data / "whimbrel/services/.node-a~12345678"  # it ended while it deleted
    half.mkdir()
    (half / "owner").touch()
    SharedStorage(shared.one, "node-a").sweep()
    assert not half.exists()
    here.leave()
    here.fill(image, {})
    assert not (shared.data / "whimbrel/services/echo/root/etc/old").exists()


def test_what_criu_left_of_a_killed_dump_goes(
    nodes: tuple[SharedRoot, SharedRoot], image: Path, tmp_path: Path
) -> None:
    """Next to files that are open and deleted; nothing else, and through no link of the service's."""
    root, _ = nodes
    root.fill(image, {})
    root.mount("node-a", whole=False)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "link_remap.7").touch()
    os.symlink(outside, root.rootfs / "trap")
    for name in ("link_remap.30", "data.cr.1f.ghost", "link_remap.txt", "data"):
        (root.rootfs / "etc" / name).touch()
    program = f"{INSIDE}\nimport time; f = open('/etc/data'); os.unlink('/etc/data')"
    program += "; print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, str(root.rootfs)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            root.tidy([holder.pid])
            left = set(os.listdir(root.rootfs / "etc"))
        finally:
            holder.kill()
    assert {"link_remap.txt", "name"} <= left
    assert not {"link_remap.30", "data.cr.1f.ghost"} & left
    assert (outside / "link_remap.7").exists()
