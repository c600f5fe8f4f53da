"""Real containers under runc: life, output, limits, and the end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from containers import Node, shell, until

from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.runtime.cgroups import Cgroup, hierarchies
from whimbrel.runtime.logger import tail
from whimbrel.runtime.runc import Runc, process_start_ticks

pytestmark = pytest.mark.real
MakeNode = Callable[[str], Awaitable[Node]]


async def test_life_of_a_container(make_node: MakeNode) -> None:
    node = await make_node("a")
    pid = await node.create(shell("svc", "echo out; echo err >&2; exec sleep 1000"))
    assert (await node.runc.state("svc")).status == "created"
    await node.runc.start("svc")
    assert [(state.id, state.pid, state.status) for state in await node.runc.list()] == [("svc", pid, "running")]
    init = node.runc.init_process("svc")
    assert init is not None
    assert init.pid == pid
    assert init.alive
    logs = node.folder / "services/svc/logs"
    await until(lambda: tail(logs, 100) == b"out\nerr\n")
    await node.runc.kill("svc", signal.SIGKILL)
    await until(lambda: not init.alive)
    assert (await node.runc.state("svc")).status == "stopped"
    await node.runc.delete("svc")
    assert await node.runc.list() == ()
    assert node.runc.init_process("svc") is None
    await node.runc.delete("svc", force=True)


async def test_exec_gives_output_and_code(make_node: MakeNode) -> None:
    node = await make_node("a")
    await node.create(shell("svc", "exec sleep 1000"))
    await node.runc.start("svc")
    result = await node.runc.exec("svc", ("/bin/sh", "-c", "echo $0 $1; echo bad >&2; exit 7", "a b", "c"))
    assert (result.exit_code, result.stdout, result.stderr) == (7, "a b c\n", "bad\n")
    missing = await node.runc.exec("svc", ("nothing-here",))
    assert missing.exit_code != 0
    assert "nothing-here" in missing.stderr
    cut = await node.runc.exec("svc", ("/bin/cat", "/bin/cat"), max_bytes=10)
    assert len(cut.stdout) <= 10
    with pytest.raises(Refused, match="longer than"):
        await node.runc.exec("svc", ("/bin/sleep", "1000"), timeout_s=0.3)
    assert len(node.cgroup("svc").pids()) == 1


async def test_inside_only_what_was_given(make_node: MakeNode) -> None:
    node = await make_node("a")
    await node.create(shell("svc", "exec sleep 1000"))
    await node.runc.start("svc")

    async def run(script: str) -> str:
        return (await node.runc.exec("svc", ("/bin/sh", "-c", script))).stdout.strip()

    assert await run("ls /proc/self/fd") == "0\n1\n2\n3"
    assert await run("ls -d /dev/null /dev/zero /dev/shm /dev/pts/ptmx /dev/stdout | cat") != ""
    assert await run("echo x > /dev/null && echo ok") == "ok"
    assert await run("echo x > /dev/shm/x && echo ok") == "ok"
    assert await run("echo core > /proc/sys/kernel/core_pattern || echo refused") == "refused"
    assert await run("cat /proc/sys/kernel/hostname") == "svc"
    assert await run("cat /dev/mem || echo refused") == "refused"


async def test_failure_says_why_in_one_line(make_node: MakeNode) -> None:
    node = await make_node("a")
    spec = shell("svc", "true")
    broken = spec.__class__(name="svc", image=spec.image, address=spec.address, args=("/no/such/program",))
    with pytest.raises(WhimbrelError, match="/no/such/program") as caught:
        await node.create(broken)
    assert "\n" not in str(caught.value)
    assert await node.runc.list() == ()
    with pytest.raises(BadInput, match="no container ghost"):
        await node.runc.state("ghost")
    with pytest.raises(Refused, match="not installed"):
        await Runc(node.folder / "r", program="no-runc-here").list()


async def test_memory_limit_holds_and_is_charged(make_node: MakeNode) -> None:
    node = await make_node("a")
    grow = "x=xxxxxxxxxxxxxxxx; while true; do x=$x$x; done"
    pid = await node.create(shell("svc", grow, memory_limit_bytes=20 << 20))
    init = node.runc.init_process("svc")
    assert init is not None
    await node.runc.start("svc")
    await until(lambda: process_start_ticks(pid) != init.start_ticks)


async def test_cgroup_holds_ends_and_forgets_everything(make_node: MakeNode) -> None:
    node = await make_node("a")
    pid = await node.create(shell("svc", "sleep 1001 & sleep 1002 & wait"))
    await node.runc.start("svc")
    cgroup = node.cgroup("svc")
    await until(lambda: len(cgroup.pids()) == 3)
    assert pid in cgroup.pids()
    assert (cgroup.memory_bytes() or 0) > 0
    sleeper = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    try:
        cgroup.attach(sleeper.pid)
        assert sleeper.pid in cgroup.pids()
        paths = Path(f"/proc/{sleeper.pid}/cgroup").read_text().split()
        assert all(line.endswith(cgroup.path) for line in paths)
        assert len(paths) == len(hierarchies())
        cgroup.freeze()
        cgroup.kill_frozen()
        assert cgroup.pids() == []
    finally:
        assert sleeper.wait() == -signal.SIGKILL
    await node.runc.delete("svc", force=True)
    cgroup.remove()
    cgroup.remove(with_parents=True)
    assert not any(folder.exists() for folder in cgroup.folders)
    assert not any(folder.parent.exists() for folder in cgroup.folders)


async def test_frozen_group_stands_still_until_thawed(make_node: MakeNode) -> None:
    node = await make_node("a")
    await node.create(shell("svc", "while true; do echo x; done > /tmp/out"))
    await node.runc.start("svc")
    cgroup, out = node.cgroup("svc"), node.layer("svc").upper / "tmp/out"
    await until(lambda: out.exists() and out.stat().st_size > 0)
    cgroup.freeze()
    sizes: list[int] = []

    def still() -> bool:
        sizes.append(out.stat().st_size)
        return len(sizes) > 3 and len(set(sizes[-3:])) == 1

    await until(still)
    cgroup.thaw()
    await until(lambda: out.stat().st_size > sizes[-1])


def test_made_ahead_a_cgroup_takes_processes() -> None:
    cgroup = Cgroup(f"/whimbrel/t{os.getpid()}/ahead")
    sleeper = subprocess.Popen(["sleep", "1000"])
    try:
        cgroup.create()
        cgroup.attach(sleeper.pid)
        assert cgroup.pids() == [sleeper.pid]
    finally:
        sleeper.kill()
        sleeper.wait()
        cgroup.kill_all()
        cgroup.remove(with_parents=True)
    assert not any(folder.parent.exists() for folder in cgroup.folders)
