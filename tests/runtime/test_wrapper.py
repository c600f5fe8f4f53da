"""The wrapper passes on what is not meant for it, and becomes what it is told."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from whimbrel.model.errors import Refused
from whimbrel.runtime.engines.handover import STDIO_BASE, Handover, WaitingRoom
from whimbrel.runtime.engines.wrapper import ARRIVAL, ARRIVALS, REAL_CRIU, _parsed

WRAPPER = Path(sys.executable).with_name("whimbrel-runtime")
AS_CRIU = [sys.executable, "-m", "whimbrel.runtime.engines.wrapper", "criu"]
pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("create --bundle /b --pid-file /p abc", ("create", "abc", "/run/runc")),
        ("--root /r --log /l --log-format json create --bundle /b abc", ("create", "abc", "/r")),
        ("--root=/r --systemd-cgroup start abc", ("start", "abc", "/r")),
        ("--log create --root /r state abc", ("state", "abc", "/r")),
        ("--version", ("", "--version", "/run/runc")),
    ],
)
def test_command_lines_of_engines(line: str, expected: tuple[str, str, str]) -> None:
    assert _parsed(line.split()) == expected


@pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc")
def test_everything_else_is_runcs(tmp_path: Path) -> None:
    for arguments in (["--version"], ["--root", str(tmp_path), "list"], ["--root", str(tmp_path), "state", "nobody"]):
        ours = subprocess.run([WRAPPER, *arguments], capture_output=True, check=False)
        real = subprocess.run(["runc", *arguments], capture_output=True, check=False)
        assert (ours.returncode, ours.stdout) == (real.returncode, real.stdout)


def test_everything_else_is_crius() -> None:
    environment = {**os.environ, REAL_CRIU: "/bin/echo"}
    done = subprocess.run([*AS_CRIU, "dump", "-t", "1"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "dump -t 1\n"


def test_it_becomes_what_it_is_told() -> None:
    """With the descriptors under the numbers they have here, and its own streams out of the way."""

    async def story() -> None:
        async with WaitingRoom("wrapper-test") as room:
            start = await asyncio.create_subprocess_exec(
                *AS_CRIU, "restore", "--cgroup-root", "cpu:/x", env={**os.environ, ARRIVAL: str(room.path)},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            ended = asyncio.ensure_future(start.wait())
            hello, connection = await room.arrival(ended)
            assert hello.arguments == ("restore", "--cgroup-root", "cpu:/x")
            ours, theirs = os.pipe()
            complaints = os.memfd_create("complaints")
            script = f"cd /proc/self/fd; echo $$ > {theirs}; echo heard > {STDIO_BASE + 1}; echo complaint >&2"
            connection.setblocking(True)
            handover = Handover(connection.detach())
            process = await asyncio.to_thread(handover.launch, ["sh", "-c", script], fds=[theirs], stderr=complaints)
            os.close(theirs)
            assert start.stdout is not None
            assert await start.stdout.read() == b"heard\n", "its own standard output is the engine's"
            assert int(os.read(ours, 100)) == start.pid == process.pid, "the same process: the engine is its parent"
            assert os.pread(complaints, 100, 0) == b"complaint\n"
            assert await ended == 0
            process.wait()
            os.close(ours)
        assert not room.path.exists()

    asyncio.run(story())


def test_without_an_order_the_engine_sees_a_failure() -> None:
    async def story() -> None:
        async with WaitingRoom("wrapper-test") as room:
            environment = {**os.environ, ARRIVAL: str(room.path)}
            start = await asyncio.create_subprocess_exec(
                *AS_CRIU, "restore", env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
            )
            _, connection = await room.arrival(asyncio.ensure_future(start.wait()))
            connection.close()
            _, complaint = await start.communicate()
            assert (start.returncode, complaint) == (1, b"the migration was given up\n")

    asyncio.run(story())


def test_an_engine_that_starts_something_else_is_noticed() -> None:
    async def story() -> None:
        async with WaitingRoom("wrapper-test") as room:
            with pytest.raises(Refused, match="without our wrapper"):
                await room.arrival(asyncio.ensure_future(asyncio.sleep(0)))

    asyncio.run(story())
    assert not Path(ARRIVALS, "wrapper-test").exists()
