"""Files of a service that writes all the time: a database, a log, a mapping, odd kinds; in its layer and in volumes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.migrate.conftest import EDGES, Lab
from whimbrel.lab import commands
from whimbrel.model.migration import Outcome
from whimbrel.network import netns
from whimbrel.storage.images import ImageStore

PORT = 7300
VOLUMES = ["data:/srv/data", "disk:/srv/disk:64MiB"]

PROGRAM = f"""
import json, mmap, os, random, socket, sqlite3, threading, time
stop, idle, lock = threading.Event(), threading.Semaphore(0), threading.Lock()
done = {{"rows": 0, "lines": 0, "stores": 0, "saved": 0}}
WRITERS = 4
def paused():
    if stop.is_set():
        idle.release()
        while stop.is_set(): time.sleep(0.001)
def database():
    db = sqlite3.connect("/srv/data/rows.db", isolation_level=None)
    db.execute("pragma journal_mode=wal"); db.execute("pragma synchronous=normal")
    db.execute("create table rows (n integer primary key, text)")
    while True:
        paused()
        n = done["rows"] + 1
        db.execute("insert into rows values (?, ?)", (n, "x" * random.randrange(900)))
        done["rows"] = n; time.sleep(0.001)
def log():
    fd = os.open("/var/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        paused()
        n = done["lines"] + 1
        os.write(fd, b"line %d\\n" % n); done["lines"] = n; time.sleep(0.0005)
SIZE = 4 << 20
copy = bytearray(SIZE)
def mapping():
    fd = os.open("/srv/disk/mapped", os.O_RDWR | os.O_CREAT); os.ftruncate(fd, SIZE)
    area = mmap.mmap(fd, SIZE)
    globals()["area"] = area
    while True:
        paused()
        at = random.randrange(SIZE); area[at] = copy[at] = random.randrange(1, 256)
        done["stores"] += 1; time.sleep(0.0002)
def saver():
    os.makedirs("/etc/app", exist_ok=True)
    nameless = os.open("/etc/app/nameless", os.O_RDWR | os.O_CREAT); os.unlink("/etc/app/nameless")
    globals()["nameless"] = nameless
    while True:
        paused()
        n = done["saved"] + 1
        with open("/etc/app/settings.new", "w") as f: f.write(str(n))
        os.rename("/etc/app/settings.new", "/etc/app/settings")
        os.pwrite(nameless, b"%d" % n, 0); done["saved"] = n; time.sleep(0.002)
for target in (database, log, mapping, saver): threading.Thread(target=target, daemon=True).start()
def check():
    stop.set()
    for _ in range(WRITERS): idle.acquire()
    try:
        db = sqlite3.connect("/srv/data/rows.db")
        text = open("/var/log.txt").read()
        return dict(done,
            integrity=db.execute("pragma integrity_check").fetchone()[0],
            count=db.execute("select count(*), max(n) from rows").fetchone(),
            log=text == "".join("line %d\\n" % n for n in range(1, done["lines"] + 1)),
            mapped=area[:] == bytes(copy), on_disk=open("/srv/disk/mapped", "rb").read() == bytes(copy),
            settings=open("/etc/app/settings").read(), nameless=os.pread(nameless, 20, 0).decode())
    finally:
        stop.clear()
server = socket.create_server(("0.0.0.0", {PORT}))
print("serving", flush=True)
while True:
    conn, _ = server.accept()
    while (word := conn.recv(64)):
        conn.sendall(json.dumps(check() if word == b"check" else done).encode() + b"\\n")
"""


def with_sqlite(lab: Lab, folder: Path) -> Path:
    """The demo's root file system with the distribution's sqlite3 of the same Python."""
    image = ImageStore(folder / "store").ensure(lab.image)
    rootfs = folder / "rootfs"
    shutil.copytree(image.rootfs, rootfs, symlinks=True, ignore=shutil.ignore_patterns("dev"))
    (rootfs / "dev").mkdir()
    (python,) = (rootfs / "usr/lib").glob("python3.*")
    here = Path("/usr/lib", python.name)
    shutil.copytree(here / "sqlite3", python / "sqlite3", ignore=shutil.ignore_patterns("__pycache__"))
    for module in (here / "lib-dynload").glob("_sqlite3*.so"):
        shutil.copy2(module, python / "lib-dynload")
        listed = subprocess.run(["ldd", module], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            name, _, rest = line.strip().partition(" => ")
            if name.startswith("libsqlite3"):
                shutil.copy2(rest.split()[0], (rootfs / rest.split()[0].lstrip("/")).parent)
    return rootfs


@dataclass
class Writer:
    lab: Lab
    name: str
    user: socket.socket

    def ask(self, word: bytes) -> dict[str, Any]:
        self.user.sendall(word)
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self.user.recv(65536)
            assert piece, "the connection is over"
            answer += piece
        found: dict[str, Any] = json.loads(answer)
        return found

    def sh(self, code: str) -> str:
        result = self.lab.controller.exec(self.name, ["/usr/bin/python3", "-c", code])
        assert result.exit_code == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def image(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"rootfs:{with_sqlite(lab, tmp_path_factory.mktemp('sqlite'))}"


@pytest.fixture
def writer(lab: Lab, image: str) -> Iterator[Writer]:
    status = lab.controller.run_service(
        "writer", image, EDGES[0], args=["/usr/bin/python3", "-c", PROGRAM], volumes=VOLUMES
    )
    where = commands.node_namespace("ue-1", lab_dir=lab.directory)
    address = status.spec.address.split("/")[0]
    deadline = time.monotonic() + 20
    while True:
        try:
            user = netns.call(where, lambda: socket.create_connection((address, PORT), timeout=30))
            break
        except OSError:
            assert time.monotonic() < deadline, lab.controller.logs("writer")
            time.sleep(0.05)
    try:
        yield Writer(lab, "writer", user)
    finally:
        user.close()
        print(lab.controller.logs("writer")[-3000:])
        lab.controller.remove_service("writer")


@pytest.mark.parametrize("strategy", ["hybrid", "stop-and-copy"])
def test_no_row_line_or_byte_is_lost(writer: Writer, strategy: str) -> None:
    before = writer.ask(b"done")
    for target in (EDGES[1], EDGES[2]):
        record = writer.lab.controller.migrate("writer", target, strategy)
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        found = writer.ask(b"check")
        assert found["integrity"] == "ok"
        assert found["count"] == [found["rows"], found["rows"]], "every committed row, and no other"
        assert found["log"], "every line, in order, once"
        assert found["mapped"]
        assert found["on_disk"]
        assert found["settings"] == found["nameless"] == str(found["saved"])
        for counter in ("rows", "lines", "stores", "saved"):
            assert found[counter] > before[counter], "all writers run on"
        assert 0 < record.file_bytes < record.bytes_sent
        for node in set(EDGES) - {target}:
            assert writer.lab.leftovers(node, "writer") == []
            assert not (writer.lab.state_dir(node) / "volumes/writer").exists(), "the volumes moved along"
        before = found


def test_files_of_every_kind_follow_in_layer_and_volume(writer: Writer) -> None:
    make = """
import os
for root in ("/opt/kinds", "/srv/data/kinds", "/srv/disk/kinds", "/dev/shm/kinds"):
    os.makedirs(root + "/deep")
    open(root + "/one", "w").write("one"); os.link(root + "/one", root + "/deep/two")
    os.symlink("../one", root + "/deep/link"); os.mkfifo(root + "/pipe")
    with open(root + "/sparse", "wb") as f: f.truncate(1 << 30); f.seek(500 << 20); f.write(b"here")
    os.setxattr(root + "/one", "user.note", b"x") if not root.startswith("/dev") else None
    os.chmod(root + "/one", 0o4750)
os.remove("/srv/service.py") if os.path.exists("/srv/service.py") else None
"""
    look = """
import json, os, stat
found = {}
for root in ("/opt/kinds", "/srv/data/kinds", "/srv/disk/kinds", "/dev/shm/kinds"):
    one, sparse = os.stat(root + "/one"), os.stat(root + "/sparse")
    with open(root + "/sparse", "rb") as f: f.seek(500 << 20); here = f.read(4).decode()
    found[root] = [open(root + "/deep/two").read(), one.st_nlink, oct(one.st_mode), os.readlink(root + "/deep/link"),
        stat.S_ISFIFO(os.stat(root + "/pipe").st_mode), sparse.st_size, sparse.st_blocks * 512 < 8 << 20, here,
        os.listxattr(root + "/one"), one.st_mtime_ns]
print(json.dumps([found, os.path.exists("/srv/service.py")]))
"""
    writer.sh(make)
    before = writer.sh(look)
    for target in (EDGES[1], EDGES[0]):
        record = writer.lab.controller.migrate("writer", target)
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        assert writer.sh(look) == before


def test_only_changed_blocks_cross_after_the_first_pass(lab: Lab) -> None:
    size_mb = 96
    program = f"""
import os, random, time
fd = os.open("/big", os.O_RDWR | os.O_CREAT)
for n in range({size_mb}): os.pwrite(fd, os.urandom(1 << 20), n << 20)
print("ready", flush=True)
while True:
    os.pwrite(fd, os.urandom(4096), random.randrange({size_mb} << 8) << 12); time.sleep(0.01)
"""
    lab.controller.run_service("big", lab.image, EDGES[0], args=["/usr/bin/python3", "-c", program])
    try:
        deadline = time.monotonic() + 30
        while "ready" not in lab.controller.logs("big"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        record = lab.controller.migrate("big", EDGES[1])
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        assert record.file_bytes >= size_mb << 20
        assert record.file_bytes < (size_mb << 20) * 1.3, "it did not cross twice"
        assert record.rounds[-1].file_bytes < 8 << 20, "the freeze carried what changed, not the file"
    finally:
        lab.controller.remove_service("big")


def test_a_large_deleted_file_that_is_open_is_refused(lab: Lab) -> None:
    program = """
import os, time
fd = os.open("/gone", os.O_RDWR | os.O_CREAT); os.unlink("/gone")
os.posix_fallocate(fd, 0, 300 << 20)
print("ready", flush=True)
time.sleep(3600)
"""
    lab.controller.run_service("holds", lab.image, EDGES[0], args=["/usr/bin/python3", "-c", program])
    try:
        deadline = time.monotonic() + 30
        while "ready" not in lab.controller.logs("holds"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        record = lab.controller.migrate("holds", EDGES[1])
        assert record.outcome is not Outcome.DONE
        assert "holds the deleted file /gone of" in record.error
        assert "\n" not in record.error
        assert lab.leftovers(EDGES[1], "holds") == []
    finally:
        lab.controller.remove_service("holds")


def test_a_kept_volume_of_another_life_stops_the_move_before_anything_happens(lab: Lab) -> None:
    sleep = ["/usr/bin/python3", "-c", "import time; time.sleep(3600)"]
    controller = lab.controller
    controller.run_service("twice", lab.image, EDGES[1], args=sleep, volumes=VOLUMES[:1])
    controller.exec("twice", ["/usr/bin/python3", "-c", "open('/srv/data/old', 'w').write('precious')"])
    controller.remove_service("twice", keep_volumes=True)
    pid = controller.run_service("twice", lab.image, EDGES[0], args=sleep, volumes=VOLUMES[:1]).pid
    try:
        record = controller.migrate("twice", EDGES[1])
        assert record.outcome is not Outcome.DONE
        assert "whimbrel volume rm twice/data" in record.error
        assert controller.service("twice").pid == pid
        kept = [volume for volume in controller.volumes().volumes if volume.node == EDGES[1]]
        assert [(volume.service, volume.name, volume.in_use) for volume in kept] == [("twice", "data", False)]
        controller.remove_volume("twice", "data", EDGES[1])
        assert controller.migrate("twice", EDGES[1]).outcome is Outcome.DONE
    finally:
        controller.remove_service("twice")
    assert controller.volumes().volumes == ()
