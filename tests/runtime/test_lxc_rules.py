"""What LXC answers, and what of a container's mounts can be had elsewhere."""

from __future__ import annotations

import pytest

from whimbrel.model.errors import Refused
from whimbrel.runtime.engines.lxc import _cgroup_root, _lists, _mount_options, _provided

ANSWER = """\
State:          RUNNING
PID:            8062
lxc.rootfs.path = dir:/var/lib/lxc/sys/rootfs
lxc.mount.entry = /sys/fs/fuse/connections sys/fs/fuse/connections none bind,optional 0 0
tmpfs tmp tmpfs size=1m,create=dir 0 0

lxc.idmap =
lxc.net = empty
"""


def test_settings_with_several_values() -> None:
    assert _lists(ANSWER) == {
        "State": ["RUNNING"],
        "PID": ["8062"],
        "lxc.rootfs.path": ["dir:/var/lib/lxc/sys/rootfs"],
        "lxc.mount.entry": [
            "/sys/fs/fuse/connections sys/fs/fuse/connections none bind,optional 0 0",
            "tmpfs tmp tmpfs size=1m,create=dir 0 0",
        ],
        "lxc.net": ["empty"],
    }


def test_what_every_host_has_is_provided_there() -> None:
    entries = _lists(ANSWER)["lxc.mount.entry"]
    assert _provided(entries) == {"/sys/fs/fuse/connections": "/sys/fs/fuse/connections"}
    with pytest.raises(Refused, match="/srv of the host is mounted in it"):
        _provided([*entries, "/srv srv none rbind,create=dir 0 0"])


def test_a_tmpfs_like_the_one_there() -> None:
    assert (
        _mount_options("rw,nosuid,noexec,relatime", "rw,size=5120k,mode=755,inode64")
        == "nosuid,noexec,size=5120k,mode=755"
    )


def test_the_control_group_that_lxc_made() -> None:
    words = ("restore", "--cgroup-root", "cpu:/lxc.payload.sys-1", "--cgroup-root", "memory:/lxc.payload.sys-1", "-v4")
    assert _cgroup_root(words) == "/lxc.payload.sys-1"
    with pytest.raises(Refused, match="one path was expected"):
        _cgroup_root(("restore", "--cgroup-root", "cpu:/a", "--cgroup-root", "memory:/b"))
