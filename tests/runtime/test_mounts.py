"""What becomes of a container's mounts, and how they are shown elsewhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.runtime.mounts import Mount, clone_mounts, drop_clones, plan_mounts, read_mounts


def mount(point: str, kind: str, device: str = "0:99", root: str = "/", options: str = "rw") -> Mount:
    return Mount(device=device, root=root, point=point, kind=kind, options=options, super_options=options)


ROOT = mount("/", "overlay", "0:1")
DEV = mount("/dev", "tmpfs", "0:2")


def test_each_mount_has_its_way() -> None:
    plan = plan_mounts(
        [
            ROOT, DEV, mount("/proc", "proc", "0:3"), mount("/proc/sys", "proc", "0:3", "/sys", "ro"),
            mount("/proc/keys", "tmpfs", "0:2", "/null"), mount("/sys/firmware", "tmpfs", "0:5", options="ro"),
            mount("/sys/fs/cgroup/cpu", "cgroup", "0:6", "/docker/x"), mount("/etc/hosts", "ext4", "8:1", "/d/hosts"),
            mount("/data", "ext4", "8:1", "/d/volumes/v"), mount("/sbin/docker-init", "ext4", "8:1", "/usr/bin/init"),
        ],
        provided=["/sbin/docker-init"], volumes=["/data"], texts=["/etc/hosts", "/etc/absent"],
    )  # fmt: skip
    assert plan.carried == ("/dev", "/data")
    assert plan.provided == ("/sys/firmware", "/sys/fs/cgroup/cpu", "/sbin/docker-init")
    assert plan.texts == ("/etc/hosts",)
    assert set(plan.external) == {*plan.carried, *plan.provided, *plan.texts}, "the rest is CRIU's"


@pytest.mark.parametrize(
    "odd",
    [
        mount("/host", "ext4", "8:1", "/srv"),
        mount("/nfs", "nfs4"),
        mount("/sys/fs/fuse/connections", "sysfs", "0:77", "/fs/fuse/connections"),  # a part of the host's own
        mount("/run/x", "tmpfs", "0:55", "/y"),
    ],
)
def test_a_mount_from_outside_is_refused(odd: Mount) -> None:
    with pytest.raises(Refused, match=f"{odd.point} .* is mounted in it from outside"):
        plan_mounts([ROOT, DEV, odd])


def test_two_mounts_on_one_point_are_refused() -> None:
    with pytest.raises(Refused, match="something is mounted twice at /dev"):
        plan_mounts([ROOT, DEV, DEV])


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process whose mount namespace has a tmpfs with a blank in its name, and another on top of it."""
    script = (
        "mount -t tmpfs none '/mnt' && mkdir '/mnt/a b' /mnt/below && echo kept > '/mnt/a b/file' && "
        "mount -t tmpfs none /mnt/below && touch /mnt/below/hidden && mount --bind '/mnt/a b/file' /etc/hostname && "
        "mount -t tmpfs none '/mnt/a b' && echo ready && exec sleep 1000"
    )
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.kill()


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_mounts_of_a_stranger_are_shown_one_by_one(stranger: int, tmp_path: Path) -> None:
    points = [mount.point for mount in read_mounts(stranger)]
    assert "/mnt/a b" in points
    folder = tmp_path / "clones"
    shown = clone_mounts(stranger, ["/mnt", "/etc/hostname"], folder)
    assert sorted(os.listdir(shown["/mnt"])) == ["a b", "below"]
    assert os.listdir(shown["/mnt"] / "below") == [], "what is mounted on top of it is not shown"
    assert shown["/etc/hostname"].read_text() == "kept\n"
    (shown["/mnt"] / "new").write_text("seen inside")
    assert Path(f"/proc/{stranger}/root/mnt/new").read_text() == "seen inside"
    drop_clones(folder)
    drop_clones(folder)
    assert not folder.exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    with pytest.raises(WhimbrelError, match="cannot open /nowhere"):
        clone_mounts(stranger, ["/mnt", "/nowhere"], folder)
    assert not folder.exists()
