"""What one node has written is what the other one reads, or it is told; folders of migrations leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_mounts import INSIDE, Shared

from whimbrel.model.errors import Conflict, StepFailed
from whimbrel.storage.shared.marker import identify
from whimbrel.storage.shared.place import SharedStorage
from whimbrel.storage.shared.visible import settle

WRITER = f"""
import mmap, time
{INSIDE}
log = open('/log', 'ab', buffering=0)
mapped = open('/mapped', 'r+b')
memory = mmap.mmap(mapped.fileno(), 8192)
for n in range(200):
    log.write(b'%d\\n' % n)
    memory[5000:5004] = b'%04d' % n
print('written', flush=True)
time.sleep(60)
"""


@pytest.fixture
def storages(shared: Shared) -> Iterator[tuple[SharedStorage, SharedStorage]]:
    identify(shared.one)
    pair = SharedStorage(shared.one, "node-1"), SharedStorage(shared.two, "node-2")
    yield pair
    for storage in pair:
        storage.sweep([])
    assert os.listdir(shared.data / "whimbrel/migrations") == []


def test_what_a_process_holds_open_is_pushed_out_and_seen(shared: Shared) -> None:
    root = shared.one / "settle"
    root.mkdir()
    (root / "mapped").write_bytes(bytes(8192))
    with subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"written\n"
            seen = settle(str(root), [writer.pid])
            other = shared.two / "settle"
            assert (other / "log").read_bytes() == b"".join(b"%d\n" % n for n in range(200))
            assert (other / "mapped").read_bytes()[5000:5004] == b"0199"
        finally:
            writer.kill()
    assert {path: size for path, size, _ in seen} == {"/log": 690, "/mapped": 8192}


def test_the_reader_waits_until_it_sees_it_and_tells_what_it_does_not(
    storages: tuple[SharedStorage, SharedStorage], shared: Shared
) -> None:
    here, there = storages
    folder = here.open_folder("m-1")
    (folder / "deep").mkdir()
    (folder / "deep/pages.img").write_bytes(os.urandom(300_000))
    os.symlink("../parent", folder / "parent")
    seen = here.publish(folder)
    assert {path for path, _, _ in seen} == {"owner", "deep/pages.img"}
    assert there.await_visible(there.folder_of("m-1"), seen, timeout_s=5) < 5000
    assert (there.folder_of("m-1") / "deep/pages.img").read_bytes() == (folder / "deep/pages.img").read_bytes()

    path, size, mtime_ns = next(entry for entry in seen if entry[0] == "deep/pages.img")
    later = [(path, size + 7, mtime_ns)]
    with pytest.raises(StepFailed, match=r"deep/pages.img has 300007 bytes, there 300000 bytes; mount it with shorter"):
        there.await_visible(there.folder_of("m-1"), later, timeout_s=0.1)

    def grow() -> None:
        with (shared.data / "whimbrel/migrations/m-1/deep/pages.img").open("ab") as file:
            file.write(b"1234567")
        os.utime(shared.data / "whimbrel/migrations/m-1/deep/pages.img", ns=(mtime_ns, mtime_ns))

    timer = threading.Timer(0.3, grow)
    timer.start()
    assert there.await_visible(there.folder_of("m-1"), later, timeout_s=20) > 0
    timer.join()


def test_the_folder_of_a_migration_is_made_once_and_removed_by_either_side(
    storages: tuple[SharedStorage, SharedStorage],
) -> None:
    here, there = storages
    folder = here.open_folder("m-2")
    with pytest.raises(Conflict, match="has a folder of migration m-2 already"):
        there.open_folder("m-2")
    (folder / "inventory.img").touch()
    there.remove_folder("m-2")
    assert not folder.exists()
    here.remove_folder("m-2")


def test_a_node_that_starts_removes_what_its_last_life_left(
    storages: tuple[SharedStorage, SharedStorage], shared: Shared
) -> None:
    """But neither what it still has to settle nor another node's."""
    here, there = storages
    for name in ("m-3", "m-4"):
        here.open_folder(name)
    there.open_folder("m-5")
    half: Path = shared.data / "whimbrel/migrations/.node-1~12345678"
    half.mkdir()
    (half / "pages.img").touch()
    assert here.sweep(["m-4"]) == ["m-3"]
    assert sorted(os.listdir(shared.data / "whimbrel/migrations")) == ["m-4", "m-5"]
