"""The demo as a whole, in a lab of its own: real agents, a real controller, real migrations."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from marks import thorough
from whimbrel.migrate.journal import Journal
from whimbrel.model.migration import MigrationRecord, Outcome

OWN = os.environ.get("WHIMBREL_TEST_LAB", "w")  # so that two runs of these tests do not meet
PREFIX, EDGE = f"{OWN}d-", f"{OWN}demo"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces, CRIU and runc"),
]


class Result(msgspec.Struct):
    scenario: str
    took_s: float
    runs: list[MigrationRecord]


@pytest.fixture
def lab() -> Iterator[Path]:
    """A short path: the sockets in it have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="wd-", dir="/tmp") as folder:
        yield Path(folder)


def start(lab: Path, scenario: str = "walk") -> subprocess.Popen[bytes]:
    """Other names for everything than the default lab has, so that one that is up is not touched."""
    name = {"walk": "walk", "round-trip": "default"}[scenario]
    text = resources.files("whimbrel.lab").joinpath(f"topologies/{name}.toml").read_text()
    text = text.replace('"edge-', f'"{EDGE}-').replace('"gw-', f'"{OWN}door-').replace('"site-', '"place-')
    topology = lab / "topology.toml"
    topology.write_text(text.replace(f'name = "{name}"', f'name = "demo"\nprefix = "{PREFIX}"', 1))
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from whimbrel.lab.demo import demo
        folder = Path({str(lab)!r})
        topology, lab_dir = folder / "topology.toml", folder / "lab"
        sys.exit(demo(scenario={scenario!r}, json_output=True, topology=topology, lab_dir=lab_dir))
    """)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Traces:
    """What this host has, before the demo and after it; and while it runs, which network namespaces it makes: whoever
    is in one of them belongs to it, whatever he is called."""

    def __init__(self, lab: Path) -> None:
        self._lab = lab
        self._before = self._all()
        self._namespaces: dict[int, int] = {}  # by inode, held open: else another could get the number
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def left(self) -> dict[str, set[str]]:
        """By kind, what is there now and was not before."""
        self._over.set()
        self._watcher.join()
        found = {kind: now - self._before[kind] for kind, now in self._all().items()}
        found["processes"] = set(self._processes())
        for fd in self._namespaces.values():
            os.close(fd)
        return {kind: new for kind, new in found.items() if new}

    def _watch(self) -> None:
        kernels = os.stat("/proc/self/ns/net").st_dev
        while not self._over.wait(0.02):
            paths = list(Path("/run/netns").glob(f"{PREFIX}*"))
            with suppress(OSError):  # folders vanish while they are looked into
                paths.extend(self._lab.glob("lab/*/netns/*"))
            for path in paths:
                with suppress(OSError):
                    found = path.stat()
                    if found.st_dev == kernels and found.st_ino not in self._namespaces:
                        fd = os.open(path, os.O_RDONLY)
                        self._namespaces[os.fstat(fd).st_ino] = fd

    def _all(self) -> dict[str, set[str]]:
        groups = (folder for folder, _, _ in os.walk("/sys/fs/cgroup"))  # of both versions
        ours = (str(self._lab), f"/{PREFIX}")  # others may run labs of theirs meanwhile
        return {
            "namespaces": {path.name for path in Path("/run/netns").glob(f"{PREFIX}*")},
            "links": set(told("ip", "-o", "-br", "link")) | set(told("ip", "rule")) | set(told("ip", "route")),
            "firewall": {*told("nft", "-s", "list", "ruleset"), *told("iptables-save"), *told("ip6tables-save")},
            "control groups": {group for group in groups if f"/whimbrel/{EDGE}-" in group},
            "mounts": {
                line for line in Path("/proc/mounts").read_text().splitlines() if any(word in line for word in ours)
            },
            "files": {str(path) for path in self._lab.glob("lab*")},
        }

    def _processes(self) -> Iterator[str]:
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has gone meanwhile
                command = (entry / "cmdline").read_bytes()
                inside = (entry / "ns/net").stat().st_ino in self._namespaces
                mounts = (entry / "mountinfo").read_bytes()
                if inside or str(self._lab).encode() in command + mounts:
                    yield f"{entry.name}: {command.replace(bytes(1), b' ').decode()}"


def told(*argv: str) -> list[str]:
    """The lines that a program prints, counters and remarks aside; none where it is not installed."""
    if shutil.which(argv[0]) is None:
        return []
    lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line.partition(" [")[0] for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(("scenario", "last"), [("walk", "2"), *thorough(("round-trip", "1"))])
def test_the_user_loses_nothing_and_nothing_is_left(lab: Path, scenario: str, last: str) -> None:
    traces = Traces(lab)
    demo = start(lab, scenario)
    out, err = demo.communicate(timeout=180)
    assert demo.returncode == 0, err.decode()
    result = msgspec.json.decode(out, type=Result)
    said = re.search(r"the demo took (\d+) s", err.decode())
    assert said is not None
    assert abs(int(said[1]) - result.took_s) < 1
    runs = result.runs
    assert [(run.source, run.destination) for run in runs] == [
        (f"{EDGE}-1", f"{EDGE}-2"),
        (f"{EDGE}-2", f"{EDGE}-3"),
        (f"{EDGE}-3", f"{EDGE}-{last}"),
    ]
    for run in runs:
        assert run.outcome is Outcome.DONE
        assert (run.lost, run.resets, run.state_ok) == (0, 0, True)
    assert traces.left() == {}


def line_with(words: bytes) -> Callable[[subprocess.Popen[bytes], Path], None]:
    """The demo says these words."""

    def wait(demo: subprocess.Popen[bytes], lab: Path) -> None:
        assert demo.stderr is not None
        assert any(words in line for line in demo.stderr), f"it never says {words.decode()}"

    return wait


def a_namespace_is_there(demo: subprocess.Popen[bytes], lab: Path) -> None:
    until(demo, lambda: any(Path("/run/netns").glob(f"{PREFIX}*")))


def journal_says(*steps: str) -> Callable[[subprocess.Popen[bytes], Path], None]:
    """The source's agent has written down one of these steps of the first migration."""

    def wait(demo: subprocess.Popen[bytes], lab: Path) -> None:
        line_with(b"the user talks")(demo, lab)
        journal = Journal(lab / f"lab/{EDGE}-1/run/journal")
        until(demo, lambda: any(entry.step in steps for entry in journal.entries()))

    return wait


def until(demo: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert demo.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("moment", "number", "scenario"),
    [
        pytest.param(a_namespace_is_there, signal.SIGINT, "walk", id="the lab comes up"),
        pytest.param(line_with(b"lab up"), signal.SIGTERM, "walk", id="the service starts"),
        pytest.param(
            journal_says("prepared"),
            signal.SIGINT,
            "round-trip",
            id="memory crosses",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            journal_says("frozen", "deciding", "committed"),
            signal.SIGTERM,
            "round-trip",
            id="in or after a freeze",
        ),
        pytest.param(
            line_with(f"{EDGE}-3 -> {EDGE}-1 done".encode()),
            signal.SIGINT,
            "round-trip",
            id="the lab goes down",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_nothing_is_left_when_it_is_interrupted(
    lab: Path, moment: Callable[[subprocess.Popen[bytes], Path], None], number: signal.Signals, scenario: str
) -> None:
    traces = Traces(lab)
    demo = start(lab, scenario)
    moment(demo, lab)
    demo.send_signal(number)
    demo.communicate(timeout=60)
    assert demo.returncode != 0
    assert traces.left() == {}
