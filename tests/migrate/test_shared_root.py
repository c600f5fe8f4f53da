"""A service whose root lives on storage that all edges mount: it moves, its root stays where it is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from marks import thorough
from tests.migrate.conftest import EDGES, PORT, PREFIX, Lab, Running, Target
from tests.migrate.disturb import (
    DESTINATION,
    SOURCE,
    destination_is_clean,
    disturb,
    held_at,
    kill_agent,
    receiver_pids,
    record_of_the_last,
    runs_only_at,
    until,
)
from whimbrel.lab import commands
from whimbrel.lab.config import agent_config, shared_directory
from whimbrel.lab.processes import read_pid
from whimbrel.model.errors import Refused
from whimbrel.model.migration import Outcome
from whimbrel.network import netns
from whimbrel.workloads.catalogue import build_workload

NAME = "rooted"
VOLUMES = ["data:/srv/data"]
SLEEP = ["/usr/bin/busybox", "sleep", "3600"]

FOLDERS = ("/var/app", "/tmp/app", "/dev/shm/app", "/srv/data/app")

# Writes all the time: a log and a mapping that stay open, a file that is replaced again and again, a deleted one; on
# shared storage, in the node's own /tmp, in /dev/shm and in a volume. `check` stops all writers and looks.
PROGRAM = f"""
import ctypes, json, os, random, socket, threading, time
stop, idle = threading.Event(), threading.Semaphore(0)
FOLDERS = {FOLDERS}
logs, lines, saved, stores = {{}}, dict.fromkeys(FOLDERS, 0), 0, 0
for folder in FOLDERS:
    os.makedirs(folder)
    logs[folder] = os.open(folder + "/log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
SIZE = 1 << 20
mapped = os.open("/var/app/mapped", os.O_RDWR | os.O_CREAT); os.ftruncate(mapped, SIZE)
copy = bytearray(SIZE)
libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
plain = libc.mmap(None, SIZE, 3, 1, mapped, 0)  # without a descriptor of its own, which Python's mmap keeps
area = (ctypes.c_char * SIZE).from_address(plain); os.close(mapped)
nameless = os.open("/var/app/nameless", os.O_RDWR | os.O_CREAT); os.unlink("/var/app/nameless")
local = socket.socket(socket.AF_UNIX); local.bind("/run/local"); local.listen()
def paused():
    if stop.is_set():
        idle.release()
        while stop.is_set(): time.sleep(0.001)
def log():
    while True:
        paused()
        for folder, fd in logs.items():
            os.write(fd, b"line %d\\n" % (lines[folder] + 1)); lines[folder] += 1
        time.sleep(0.001)
def store():
    global stores
    while True:
        paused()
        at = random.randrange(SIZE); copy[at] = random.randrange(1, 256); area[at] = copy[at]
        stores += 1; time.sleep(0.0005)
def save():
    global saved
    while True:
        paused()
        with open("/var/app/settings.new", "w") as f: f.write(str(saved + 1))
        os.rename("/var/app/settings.new", "/var/app/settings")
        os.pwrite(nameless, b"%d" % (saved + 1), 0); saved += 1; time.sleep(0.01)
WRITERS = (log, store, save)
for target in WRITERS: threading.Thread(target=target, daemon=True).start()
def check():
    stop.set()
    for _ in WRITERS: idle.acquire()
    try:
        with socket.socket(socket.AF_UNIX) as to: to.connect("/run/local"); local.accept()[0].close()
        return dict(lines=lines["/var/app"], stores=stores, saved=saved,
            logs=[open(folder + "/log").read().splitlines() for folder in FOLDERS],
            written=[lines[folder] for folder in FOLDERS],
            mapped=area.raw == bytes(copy), on_disk=open("/var/app/mapped", "rb").read() == bytes(copy),
            settings=open("/var/app/settings").read(), nameless=os.pread(nameless, 20, 0).decode())
    finally:
        stop.clear()
server = socket.create_server(("0.0.0.0", {PORT}))
while True:
    conn, _ = server.accept()
    while (word := conn.recv(64)):
        conn.sendall(json.dumps(check()).encode() + b"\\n")
"""


def root_of(lab: Lab, name: str = NAME) -> Path:
    """Where the storage's server has it."""
    return lab.directory / f"{PREFIX}-nas" / "data/whimbrel/services" / name


def owner(lab: Lab, name: str = NAME) -> str:
    return (root_of(lab, name) / "owner").read_text()


@pytest.fixture(scope="module")
def rooted(lab: Lab) -> Iterator[Target]:
    """A service that writes all the time."""
    lab.controller.run_service(
        NAME, lab.image, EDGES[0], args=["/usr/bin/python3", "-c", PROGRAM], volumes=VOLUMES, shared=True
    )
    yield Target(lab, NAME)
    lab.controller.remove_service(NAME)
    assert not root_of(lab).exists(), "its owner deletes it"


@pytest.fixture
def user(lab: Lab, rooted: Target) -> Iterator[socket.socket]:
    """Of that service, on the first edge."""
    if rooted.node != EDGES[0]:
        record = lab.controller.migrate(NAME, EDGES[0])
        assert (record.outcome, record.error) == (Outcome.DONE, "")
    where = commands.node_namespace("ue-1", lab_dir=lab.directory)
    address = lab.controller.service(NAME).spec.address.split("/")[0]
    deadline = time.monotonic() + 20
    while True:
        try:
            connected = netns.call(where, lambda: socket.create_connection((address, PORT), timeout=30))
            break
        except OSError:
            assert time.monotonic() < deadline, lab.controller.logs(NAME)
            time.sleep(0.05)
    try:
        yield connected
    finally:
        connected.close()
        lab.disarm()
        print(lab.controller.logs(NAME)[-3000:])
        for log in sorted(lab.directory.glob(f"{PREFIX}-[123]/*.log")):
            print(f"--- {log}\n{log.read_text()[-1500:]}")
        for node in EDGES:
            if lab.agent_pid(node) == 0:
                lab.restart_agent(node)


def check(user: socket.socket) -> dict[str, Any]:
    user.sendall(b"check")
    answer = b""
    while not answer.endswith(b"\n"):
        piece = user.recv(65536)
        assert piece, "the connection is over"
        answer += piece
    found: dict[str, Any] = json.loads(answer)
    for folder, log, written in zip(FOLDERS, found["logs"], found["written"], strict=True):
        wanted = [f"line {n}" for n in range(1, written + 1)]
        odd = next((n for n, both in enumerate(zip_longest(log, wanted)) if both[0] != both[1]), written)
        assert odd == written, f"{folder} has {log[odd - 2 : odd + 3]} around line {odd + 1} of {written}"
    assert found["mapped"]
    assert found["on_disk"]
    assert found["settings"] == found["nameless"] == str(found["saved"])
    return found


@pytest.mark.parametrize("strategy", ["shared", *thorough("hybrid")])
def test_there_and_back_without_a_copy_of_its_files(lab: Lab, user: socket.socket, strategy: str) -> None:
    """Files open, mapped, replaced and deleted while it moves; the connection lives on."""
    before = check(user)
    root_bytes = sum(path.lstat().st_size for path in (root_of(lab) / "root").rglob("*") if path.is_file())
    for target in (EDGES[1], EDGES[0]):
        record = lab.controller.migrate(NAME, target, strategy)
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        assert "freeze.restore.visible" in {phase.name for phase in record.phases}
        assert record.file_bytes < root_bytes / 10, "only what is the node's own crossed"
        found = check(user)
        for counter in ("lines", "stores", "saved"):
            assert found[counter] > before[counter], "all writers run on"
        assert owner(lab) == target
        for node in set(EDGES) - {target}:
            assert lab.leftovers(node, NAME) == []
        before = found
    assert _strange_names(lab) == []


# --- failures -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("point", ["receive.ready", *thorough("rounds")])
def test_destination_agent_killed(lab: Lab, user: socket.socket, point: str) -> None:
    """The service runs on at the source, whose root it still is; also when it was restored over there already."""
    before = check(user)
    running = Target(lab, NAME)

    def strike() -> None:
        kill_agent(lab, DESTINATION)
        until(lambda: not receiver_pids(lab, DESTINATION), "the receiving process outlives its agent")

    record = disturb(running, point, strike)
    assert record.outcome is Outcome.ROLLED_BACK
    assert check(user)["lines"] > before["lines"]
    destination_is_clean(running)
    assert (owner(lab), running.node) == (SOURCE, SOURCE)
    assert _strange_names(lab) == []
    record = lab.controller.migrate(NAME, DESTINATION)
    assert (record.outcome, record.error, owner(lab)) == (Outcome.DONE, "", DESTINATION)
    check(user)


@pytest.mark.parametrize(
    ("point", "runs_at"),
    [("receive.committed", DESTINATION), *thorough(("freeze.pages", SOURCE))],
    ids=("destination", "source"),  # names of nodes differ from worker to worker
)
def test_source_agent_killed(lab: Lab, user: socket.socket, point: str, runs_at: str) -> None:
    """Whoever has the service in the end has its root, and the other one deletes nothing of it."""
    before = check(user)
    running = Target(lab, NAME)
    with held_at(running, point):
        kill_agent(lab, SOURCE)
        lab.disarm()
        lab.restart_agent(SOURCE)
    record_of_the_last(running)
    runs_only_at(running, runs_at)
    assert check(user)["lines"] > before["lines"]
    until(lambda: owner(lab) == runs_at, f"the root is {owner(lab)}'s")
    other = DESTINATION if runs_at == SOURCE else SOURCE
    until(lambda: lab.leftovers(other, NAME) == [], f"something is left at {other}")


def _strange_names(lab: Lab) -> list[str]:
    """What CRIU makes in the middle of its work."""
    names = [path.name for path in (root_of(lab) / "root/var/app").iterdir()]
    return [name for name in names if name.startswith("link_remap") or name.endswith(".ghost")]


# --- refusals -------------------------------------------------------------------------------------------------
SLEEPER = "sleeper"


@pytest.fixture
def sleeper(lab: Lab) -> Iterator[str]:
    """A service of which there is little to copy to the storage."""
    image = build_workload("blank").reference
    lab.controller.run_service(SLEEPER, image, EDGES[0], args=SLEEP, shared=True)
    yield SLEEPER
    lab.controller.remove_service(SLEEPER)
    assert not root_of(lab, SLEEPER).exists(), "its owner deletes it"


@contextlib.contextmanager
def storage_of(lab: Lab, node: str, kind: str) -> Iterator[None]:
    """The node's storage is as `kind` says: its agent has ``none``, or ``another`` one; or it ``hangs``."""
    if kind == "hangs":
        client = read_pid(lab.state_dir(node) / "storage.pid")
        os.kill(client, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(client, signal.SIGCONT)
            until(lambda: not _shared_problem(lab, node), "the storage does not come back")
        return
    config = agent_config(lab.directory, node)
    before = config.read_text()
    lines = [line for line in before.splitlines() if not line.startswith("shared_directory")]
    if kind == "another":
        elsewhere = shared_directory(lab.directory, node) / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        lines.append(f'shared_directory = "{elsewhere}"')
    try:
        _restart_with(lab, node, "\n".join(lines) + "\n")
        yield
    finally:
        _restart_with(lab, node, before)


def _restart_with(lab: Lab, node: str, config: str) -> None:
    agent_config(lab.directory, node).write_text(config)
    kill_agent(lab, node)
    lab.restart_agent(node)


def _shared_problem(lab: Lab, node: str) -> str:
    (view,) = [view for view in lab.controller.nodes() if view.name == node]
    return "no storage" if view.shared is None else view.shared.problem


REFUSALS = {
    "none": f"{DESTINATION} mounts no shared storage",
    "another": f"{DESTINATION} mounts another shared storage (",
    "hangs": f"the shared storage of {DESTINATION} is away (",
}


@pytest.mark.parametrize("kind", ["none", *thorough("another", "hangs")])
def test_a_destination_that_cannot_have_it_is_refused(lab: Lab, sleeper: str, running: Running, kind: str) -> None:
    """Before anything happens, in one line: a root, and memory that was to go by way of the storage."""
    before = lab.controller.service(sleeper)
    with storage_of(lab, DESTINATION, kind):
        for name, strategy, way_out in (
            (sleeper, "hybrid", f": choose a node that mounts the storage {before.shared}, which {sleeper} lives on"),
            (running.name, "shared", "; use --strategy diskless"),
        ):
            record = lab.controller.migrate(name, DESTINATION, strategy)
            assert record.outcome is not Outcome.DONE
            assert REFUSALS[kind] in record.error
            assert way_out in record.error
            assert "\n" not in record.error
            assert lab.leftovers(DESTINATION, name) == []
        assert lab.controller.service(sleeper).pid == before.pid
        assert owner(lab, sleeper) == EDGES[0]
        if kind == "none":
            with pytest.raises(Refused, match=f"{DESTINATION} has no shared file system: choose a node that has one"):
                lab.controller.run_service("never", lab.image, DESTINATION, args=SLEEP, shared=True)
        assert lab.controller.migrate(running.name, DESTINATION).outcome is Outcome.DONE, "the way out is one"
    assert lab.controller.migrate(sleeper, DESTINATION).outcome is Outcome.DONE


def test_a_source_whose_storage_hangs_tells_it(lab: Lab, running: Running) -> None:
    with storage_of(lab, SOURCE, "hangs"):
        record = running.migrate(DESTINATION, "shared")
        assert f"the shared storage of {SOURCE} is away" in record.error
        assert record.error.endswith("; use --strategy diskless")
        with pytest.raises(Refused, match=f"no root file system can live on the shared storage of {SOURCE}: .* answer"):
            lab.controller.run_service("never", lab.image, SOURCE, args=SLEEP, shared=True)
        assert running.migrate(DESTINATION).outcome is Outcome.DONE
    assert not root_of(lab, "never").exists()


# --- auto -----------------------------------------------------------------------------------------------------
def test_auto_takes_what_arrives_sooner_when_nobody_knows_when_the_user_leaves(lab: Lab, sleeper: str) -> None:
    """No file is copied, so it is a matter of how memory gets there: link and storage are measured, both are told."""
    root_bytes = sum(path.lstat().st_size for path in (root_of(lab, sleeper) / "root").rglob("*") if path.is_file())
    unknown = lab.controller.migrate(sleeper, EDGES[1], "auto")
    assert unknown.outcome is Outcome.DONE
    assert unknown.file_bytes < root_bytes / 10
    told = re.search(
        r"auto: both nodes mount the service's storage, so no file is copied: hybrid is predicted to arrive in "
        r"([0-9.]+) s .*, shared is predicted to arrive in ([0-9.]+) s .*\(link [0-9]+ Mbit/s, storage [0-9]+ Mbit/s\)",
        unknown.reason,
    )
    assert told, unknown.reason
    hybrid_s, shared_s = float(told[1]), float(told[2])
    if hybrid_s != shared_s:  # as they are told
        assert unknown.strategy == ("hybrid" if hybrid_s < shared_s else "shared")
    assert not list(shared_directory(lab.directory, SOURCE).glob(".speed-*")), "what was written to measure is gone"
    known = lab.controller.migrate(sleeper, EDGES[2], "auto", handover_in_ms=1500.0)
    assert (known.outcome, known.strategy) == (Outcome.DONE, "hybrid")
    assert "the handover comes in 1.5 s" in known.reason
    budget = lab.controller.migrate(sleeper, EDGES[0], "auto", max_downtime_ms=100.0)
    assert budget.outcome is Outcome.DONE
    assert budget.strategy in ("hybrid", "post-copy"), "what freezes shortly, as was learnt here"
