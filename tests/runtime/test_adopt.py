"""A tree that CRIU restored is runc's own: there, and back again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from containers import Node, shell, until

from whimbrel.checkpoint.swrk import criu_path
from whimbrel.model.errors import WhimbrelError
from whimbrel.runtime.adopt import adopt, find_restored, is_placeholder, point_to_rootfs
from whimbrel.runtime.logger import add_log_segments, open_log, pack_logs, settle, tail
from whimbrel.runtime.runc import process_start_ticks
from whimbrel.runtime.spec import SHM_EXTERNAL, SHM_MOUNT, build_spec, volume_external
from whimbrel.storage.layer import mount_overlay, unmount
from whimbrel.storage.treecopy import copy_folder

pytestmark = pytest.mark.real
MakeNode = Callable[[str], Awaitable[Node]]

COUNT = """
exec 3>/dev/shm/seen 4>>/srv/data/log
i=0
while true; do i=$((i+1)); echo $i; echo $i > /tmp/count; echo $i >&3; echo $i >&4; sleep 0.02; done
"""
SPEC = shell("svc", COUNT, memory_limit_bytes=64 << 20, volumes=("data:/srv/data",))
VOLUME = volume_external("data")


def criu(command: str, netns: Path, images: Path, *options: str, **more: object) -> None:
    argv = ["nsenter", f"--net={netns}", criu_path(), command, "--images-dir", str(images), "-v2"]
    argv += ["--manage-cgroups=ignore", "-o", f"{command}.log", *options]
    done = subprocess.run(argv, capture_output=True, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, (images / f"{command}.log").read_text()[-2000:]


async def placeholder(node: Node) -> None:
    """A waiting container on a root file system of its own; the real one is for the restore."""
    folder, layer = node.folder / "services/svc", node.layer("svc")
    layer.create()
    layer.mount_shm()
    waiting = node.folder / "waiting"
    for name in ("upper", "work", "rootfs"):
        (waiting / name).mkdir(parents=True, exist_ok=True)
    mount_overlay(node.image.rootfs, waiting / "upper", waiting / "work", waiting / "rootfs")
    try:
        for rootfs in (waiting / "rootfs", layer.rootfs):
            config = build_spec(
                SPEC,
                node.image,
                rootfs=rootfs,
                shm=layer.shm,
                netns=node.netns,
                cgroup=node.cgroup("svc").path,
                volumes=node.volumes(SPEC),
            )
            (folder / "config.json").write_bytes(config)
            if rootfs != layer.rootfs:
                await node.runc.create("svc", folder)
    finally:
        unmount(waiting / "rootfs")
    point_to_rootfs(node.runc.root, "svc", layer.rootfs)


async def move(source: Node, target: Node, images: Path) -> int:
    """Stop and copy, by hand; returns the restored first process."""
    await placeholder(target)
    waiting = target.runc.init_process("svc")
    assert waiting is not None
    images.mkdir()
    pid = find_restored(source.runc.root, "svc", source.cgroup("svc").pids())
    stdio = os.readlink(f"/proc/{pid}/fd/1")
    criu("dump", source.netns, images, "--tree", str(pid), "--root", str(source.layer("svc").rootfs),
         "--network-lock", "skip", "--external", f"mnt[{SHM_MOUNT}]:{SHM_EXTERNAL}",
         "--external", f"mnt[/srv/data]:{VOLUME}")  # fmt: skip
    here, there = source.layer("svc"), target.layer("svc")
    mine, theirs = source.volumes(SPEC)["/srv/data"], target.volumes(SPEC)["/srv/data"]
    shutil.rmtree(theirs)
    theirs.mkdir()
    for old, new in ((here.upper, there.upper), (here.shm, there.shm), (mine, theirs)):
        copy_folder(old, new)
    there.mount(target.image.rootfs)
    logs = target.folder / "services/svc/logs"
    output = open_log(logs, target.name)
    procs = target.cgroup("svc").procs_files()

    def join() -> None:
        for file in procs:
            file.write_text("0")

    try:
        criu("restore", target.netns, images, "--root", str(there.rootfs), "--restore-detached",
             "--external", f"mnt[{SHM_EXTERNAL}]:{there.shm}", "--external", f"mnt[{VOLUME}]:{theirs}",
             "--inherit-fd", f"fd[{output}]:{stdio}",
             pass_fds=(output,), preexec_fn=join)  # fmt: skip
    finally:
        os.close(output)
    restored = find_restored(target.runc.root, "svc", target.cgroup("svc").pids())
    assert is_placeholder(target.runc.root, "svc")
    adopt(target.runc.root, "svc", restored)
    await until(lambda: not waiting.alive)
    assert settle(source.folder / "services/svc/logs", timeout_s=30)
    add_log_segments(logs, pack_logs(source.folder / "services/svc/logs"))
    await source.remove("svc")
    return restored


async def assert_full_citizen(node: Node, pid: int) -> None:
    assert [(state.id, state.pid, state.status) for state in await node.runc.list()] == [("svc", pid, "running")]
    state = await node.runc.state("svc")
    assert (state.pid, state.rootfs) == (pid, str(node.layer("svc").rootfs))
    inside = await node.runc.exec("svc", ("/bin/sh", "-c", "cat /tmp/count && stat -c %s /dev/shm/seen && id -u"))
    assert inside.exit_code == 0, inside.stderr
    assert int(inside.stdout.split()[0]) > 0
    groups = Path(f"/proc/{pid}/cgroup").read_text().split()
    assert all(line.endswith(node.cgroup("svc").path) for line in groups), groups
    assert pid in node.cgroup("svc").pids()
    await until(lambda: len(node.cgroup("svc").pids()) <= 2)  # the shell and its sleep: no placeholder
    assert (node.cgroup("svc").memory_bytes() or 0) > 0
    before = int((node.layer("svc").rootfs / "tmp/count").read_text() or 0)
    await until(lambda: int((node.layer("svc").rootfs / "tmp/count").read_text() or 0) > before + 2)


async def test_restored_container_is_runcs_own_there_and_back(make_node: MakeNode, tmp_path: Path) -> None:
    one, two = await make_node("one"), await make_node("two")
    pid = await one.create(SPEC)
    await one.runc.start("svc")
    logs = {node.name: node.folder / "services/svc/logs" for node in (one, two)}
    await until(lambda: b"\n5\n" in tail(logs[one.name], 1000))
    for number, (source, target) in enumerate([(one, two), (two, one), (one, two)]):
        pid = await move(source, target, tmp_path / f"images{number}")
        await assert_full_citizen(target, pid)
        assert await source.runc.list() == ()
        assert not any(folder.exists() for folder in source.cgroup("svc").folders)
    counted = [int(line) for line in tail(logs[two.name], 1 << 20).split()]
    assert counted == list(range(1, len(counted) + 1))  # nothing the service said is lost or said twice
    written = [int(line) for line in (two.volumes(SPEC)["/srv/data"] / "log").read_text().split()]
    assert written == list(range(1, len(written) + 1))  # the open file of the volume went on with it
    assert len(written) >= len(counted) - 1
    await two.runc.kill("svc", signal.SIGKILL)
    await until(lambda: process_start_ticks(pid) is None)
    assert (await two.runc.state("svc")).status == "stopped"
    await two.runc.delete("svc")
    assert await two.runc.list() == ()


async def test_adoption_is_fast_and_ends_only_the_placeholder(make_node: MakeNode) -> None:
    node = await make_node("a")
    await placeholder(node)
    waiting = node.runc.init_process("svc")
    assert waiting is not None
    other = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    try:
        adopt(node.runc.root, "svc", other.pid)
        await until(lambda: not waiting.alive)
        assert (await node.runc.state("svc")).pid == other.pid
        took_ms = []
        for _ in range(10):  # again, as after an agent's restart
            started = time.perf_counter()
            adopt(node.runc.root, "svc", other.pid)
            took_ms.append((time.perf_counter() - started) * 1e3)
        assert min(took_ms) < 3
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_adoption_of_nothing_is_an_error(make_node: MakeNode) -> None:
    node = await make_node("a")
    with pytest.raises(WhimbrelError, match="no placeholder"):
        adopt(node.runc.root, "svc", 1)
    await placeholder(node)
    waiting = node.runc.init_process("svc")
    with pytest.raises(WhimbrelError, match="is gone"):
        adopt(node.runc.root, "svc", 2**22 - 1)
    assert waiting is not None
    assert waiting.alive
    with pytest.raises(WhimbrelError, match="no restored process"):
        find_restored(node.runc.root, "svc", node.cgroup("svc").pids())
