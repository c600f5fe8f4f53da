"""What is refused before anything happens: one line, the cause and the way out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from whimbrel.migrate.preflight import FileRoom, check_room, compare
from whimbrel.model.errors import Refused
from whimbrel.model.node import Capabilities, Resources

HERE = Capabilities(
    whimbrel="0.1.0",
    machine="x86_64",
    kernel="6.18",
    criu="4.2.1",
    runc="1.1.5",
    cpu_features=("avx2", "sse4_2"),
    write_protect_tracking=True,
    lazy_pages=True,
)
ROOM = Resources(
    cpus=2,
    load_1min=0.1,
    memory_total_bytes=8 << 30,
    memory_available_bytes=1 << 30,
    disk_available_bytes=1 << 30,
)


def test_equal_nodes_agree() -> None:
    compare(HERE, msgspec.structs.replace(HERE, kernel="6.12", cpu_features=("avx2", "avx512f", "sse4_2")), "there")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"criu": "4.1.1"}, "CRIU differs: 4.2.1 here, 4.1.1 on there; install the same version on both"),
        ({"runc": "1.3.0"}, "runc differs: 1.1.5 here, 1.3.0 on there"),
        ({"whimbrel": "0.2.0"}, "Whimbrel differs"),
        ({"machine": "aarch64"}, "choose a node of the same type"),
        ({"cpu_features": ("sse4_2",)}, "the CPU of there lacks avx2"),
    ],
)
def test_differences_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        compare(HERE, msgspec.structs.replace(HERE, **change), "there")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("rss_bytes", "files", "words"),
    [
        (600 << 20, FileRoom(), "of memory free, the migration needs"),
        (300 << 20, FileRoom(memory_bytes=500 << 20), "of memory free, the migration needs"),
        (300 << 20, FileRoom(nameless_bytes=200 << 20), "of memory free, the migration needs"),
        (100 << 20, FileRoom(disk_bytes=2 << 30), "of disk free, the migration needs"),
    ],
    ids=["memory", "files in /dev/shm", "files without a name", "disk"],
)
def test_too_little_memory_and_disk_are_refused(rss_bytes: int, files: FileRoom, words: str) -> None:
    check_room(300 << 20, FileRoom(disk_bytes=100 << 20, memory_bytes=10 << 20), ROOM, "there")
    with pytest.raises(Refused, match=words):
        check_room(rss_bytes, files, ROOM, "there")
