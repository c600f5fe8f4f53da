"""The demo as a whole, in a lab of its own: real agents, a real controller, real migrations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from whimbrel.model.migration import MigrationRecord, Outcome

PREFIX = "wd-"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces, CRIU and runc"),
]


class Result(msgspec.Struct):
    scenario: str
    runs: list[MigrationRecord]


@pytest.fixture
def lab() -> Iterator[Path]:
    """A short path: the sockets in it have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="wd-", dir="/tmp") as folder:
        yield Path(folder)


def start(lab: Path) -> subprocess.Popen[bytes]:
    """Other names for everything than the default lab has, so that one that is up is not touched."""
    text = resources.files("whimbrel.lab").joinpath("topologies/default.toml").read_text()
    text = text.replace('"edge-', '"demo-').replace('"gw-', '"door-')
    topology = lab / "topology.toml"
    topology.write_text(text.replace('name = "default"', f'name = "demo"\nprefix = "{PREFIX}"', 1))
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from whimbrel.lab.demo import demo
        folder = Path({str(lab)!r})
        sys.exit(demo(json_output=True, topology=folder / "topology.toml", lab_dir=folder / "lab"))
    """)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def leftovers(lab: Path) -> list[str]:
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(lab) in line]
    spaces = [path.name for path in Path("/run/netns").glob(f"{PREFIX}*")]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob("*/whimbrel/demo-*")]
    processes = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if str(lab).encode() in command:
            processes.append(command.replace(b"\0", b" ").decode())
    return mounts + spaces + groups + processes


def test_the_user_loses_nothing_and_nothing_is_left(lab: Path) -> None:
    demo = start(lab)
    out, err = demo.communicate(timeout=180)
    assert demo.returncode == 0, err.decode()
    runs = msgspec.json.decode(out, type=Result).runs
    assert [(run.source, run.destination) for run in runs] == [
        ("demo-1", "demo-2"),
        ("demo-2", "demo-3"),
        ("demo-3", "demo-1"),
    ]
    for run in runs:
        assert run.outcome is Outcome.DONE
        assert (run.lost, run.resets, run.state_ok) == (0, 0, True)
    assert leftovers(lab) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_interrupted(lab: Path, number: signal.Signals) -> None:
    demo = start(lab)
    assert demo.stderr is not None
    for line in demo.stderr:
        if b"the user talks" in line:
            break
    time.sleep(2.5)  # in the first migration
    demo.send_signal(number)
    demo.communicate(timeout=60)
    assert demo.returncode not in (0, None)
    assert leftovers(lab) == []
