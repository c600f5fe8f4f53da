"""A service whose root lives on storage that all edges mount: it moves, its root stays where it is."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.migrate.conftest import EDGES, PORT, PREFIX, Lab
from whimbrel.lab import commands
from whimbrel.model.migration import Outcome
from whimbrel.network import netns

NAME = "rooted"
VOLUMES = ["data:/srv/data"]

# Writes all the time: a log and a mapping that stay open, a file that is replaced again and again, a deleted one; on
# shared storage, in the node's own /tmp, in /dev/shm and in a volume. `check` stops all writers and looks.
PROGRAM = f"""
import json, mmap, os, random, socket, threading, time
stop, idle = threading.Event(), threading.Semaphore(0)
FOLDERS = ("/var/app", "/tmp/app", "/dev/shm/app", "/srv/data/app")
logs, lines, saved, stores = {{}}, dict.fromkeys(FOLDERS, 0), 0, 0
for folder in FOLDERS:
    os.makedirs(folder)
    logs[folder] = os.open(folder + "/log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
SIZE = 1 << 20
mapped = os.open("/var/app/mapped", os.O_RDWR | os.O_CREAT); os.ftruncate(mapped, SIZE)
area, copy = mmap.mmap(mapped, SIZE), bytearray(SIZE)
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
        at = random.randrange(SIZE); area[at] = copy[at] = random.randrange(1, 256)
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
            logs=[open(folder + "/log").read() == "".join("line %d\\n" % n for n in range(1, lines[folder] + 1))
                  for folder in FOLDERS],
            mapped=area[:] == bytes(copy), on_disk=open("/var/app/mapped", "rb").read() == bytes(copy),
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


def owner(lab: Lab) -> str:
    return (root_of(lab) / "owner").read_text()


@pytest.fixture
def user(lab: Lab) -> Iterator[socket.socket]:
    """Of a service that writes all the time, on the first edge."""
    status = lab.controller.run_service(
        NAME, lab.image, EDGES[0], args=["/usr/bin/python3", "-c", PROGRAM], volumes=VOLUMES, shared=True
    )
    where = commands.node_namespace("ue-1", lab_dir=lab.directory)
    address = status.spec.address.split("/")[0]
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
        print(lab.controller.logs(NAME)[-3000:])
        for log in sorted(lab.directory.glob(f"{PREFIX}-[123]/*.log")):
            print(f"--- {log}\n{log.read_text()[-1500:]}")
        lab.controller.remove_service(NAME)
        assert not root_of(lab).exists(), "its owner deletes it"


def check(user: socket.socket) -> dict[str, Any]:
    user.sendall(b"check")
    answer = b""
    while not answer.endswith(b"\n"):
        piece = user.recv(65536)
        assert piece, "the connection is over"
        answer += piece
    found: dict[str, Any] = json.loads(answer)
    assert found["logs"] == [True] * 4, "every line, in order, once: shared, /tmp, /dev/shm, volume"
    assert found["mapped"]
    assert found["on_disk"]
    assert found["settings"] == found["nameless"] == str(found["saved"])
    return found


@pytest.mark.parametrize("strategy", ["hybrid", "shared", "stop-and-copy"])
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
    left = {path.name for path in (root_of(lab) / "root/var/app").iterdir()}
    assert {"log", "mapped", "settings"} <= left
    assert not [name for name in left if name.startswith("link_remap") or name.endswith(".ghost")]
