"""What comes from a peer is not trusted: nothing outside the folder is touched, nothing damaged is kept silently."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from whimbrel.model.errors import BadInput, StepFailed, WhimbrelError
from whimbrel.storage.blocks import BLOCK_SIZES, Digester
from whimbrel.storage.records import (
    Data,
    File,
    FileEnd,
    Folder,
    Link,
    Meta,
    Record,
    Removed,
    Special,
    Stash,
    Symlink,
    Unstash,
    Zeros,
)
from whimbrel.storage.treesink import TreeSink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for owners")

DIGESTER = Digester(42)
BLOCK = BLOCK_SIZES[0]
FILE = Meta(stat.S_IFREG | 0o644, 0, 0, 0)
FOLDER = Meta(stat.S_IFDIR | 0o755, 0, 0, 0)
LINK = Meta(stat.S_IFLNK | 0o777, 0, 0, 0)


def file(path: bytes, content: bytes = b"x", number: int = 1, meta: Meta = FILE) -> list[Record]:
    digests = DIGESTER.blocks(memoryview(content), BLOCK)
    body = [Data(0, content, digests)] if content else []
    return [File(path, number, True, len(content), BLOCK, meta), *body, FileEnd(DIGESTER.whole(digests, len(content)))]


def link(path: bytes, target: bytes) -> list[Record]:
    return [Symlink(path, target, LINK)]


HOSTILE: dict[str, list[Record]] = {
    "climbs": file(b"../escaped"),
    "climbs inside": [Folder(b"a", FOLDER), *file(b"a/../../escaped")],
    "absolute": file(b"/tmp/escaped"),
    "dot": file(b"./escaped"),
    "climbs from an open folder": [Folder(b"a", FOLDER), *file(b"a/first"), Folder(b"a/..", FOLDER)],
    "absolute from the open root": [Folder(b"", FOLDER), *file(b"/escaped")],
    "a zero in an open folder": [Folder(b"a", FOLDER), *file(b"a/esc\0aped")],
    "the open folder itself": [Folder(b"a", FOLDER), *file(b"a/.")],
    "empty": file(b""),
    "a zero in it": file(b"esc\0aped"),
    "through a link it brought": [*link(b"out", b"{outside}"), *file(b"out/escaped")],
    "through a link that was here": file(b"here/escaped"),
    "folder through a link": [Folder(b"here/escaped", FOLDER)],
    "the link as a folder, then through it": [*link(b"out", b"{outside}"), *file(b"out/a/escaped")],
    "through proc": [*link(b"p", b"/proc/self/root"), *file(b"p/tmp/escaped")],
    "another name out": [Link(b"mine", b"../outside/precious")],
    "another name, absolute": [Link(b"mine", b"{outside}/precious")],
    "another name through a link": [Link(b"mine", b"here/precious")],
    "another name of a link": [*link(b"l", b"{outside}/precious"), Link(b"mine", b"l")],
    "another name of nothing": [Link(b"mine", b"nothing")],
    "a disk": [Special(b"disk", Meta(stat.S_IFBLK | 0o600, 0, 0, 0))],
    "the host's memory": [Special(b"mem", Meta(stat.S_IFCHR | 0o600, 0, 0, 0), (1, 1))],
    "a disk that calls itself harmless": [Special(b"disk", Meta(stat.S_IFBLK | 0o600, 0, 0, 0), (1, 3))],
    "a device of no number": [Special(b"null", Meta(stat.S_IFCHR | 0o600, 0, 0, 0), (-1, 1 << 70))],
    "a socket": [Special(b"socket", Meta(stat.S_IFSOCK | 0o600, 0, 0, 0))],
    "removes outside": [Removed(b"../outside/precious")],
    "moves to outside": [*file(b"mine"), Stash(b"mine", 1), Unstash(1, b"here/escaped")],
    "writes to what is here": [File(b"here", 7, False, 10, BLOCK, FILE)],
    "writes to what it did not bring": [File(b"whole", 7, False, 10, BLOCK, FILE)],
    "writes to another file than it says": [*file(b"a", number=1), *file(b"b", number=2),
                                            File(b"a", 2, False, 1, BLOCK, FILE)],
    "a file in a file": [*file(b"a")[:1], *file(b"b")],
    "contents of no file": [Data(0, b"x", bytes(16))],
    "zeros of no file": [Zeros(0, 1)],
    "an end of no file": [FileEnd(bytes(16))],
    "contents past the end": [File(b"a", 1, True, BLOCK, BLOCK, FILE), Data(BLOCK, bytes(BLOCK), bytes(16))],
    "contents before the start": [File(b"a", 1, True, BLOCK, BLOCK, FILE), Data(-BLOCK, bytes(BLOCK), bytes(16))],
    "contents between blocks": [File(b"a", 1, True, BLOCK * 2, BLOCK, FILE), Data(1, bytes(BLOCK), bytes(16))],
    "part of a block": [File(b"a", 1, True, BLOCK * 2, BLOCK, FILE), Data(0, bytes(5), bytes(16))],
    "too few digests": [File(b"a", 1, True, BLOCK * 2, BLOCK, FILE), Data(0, bytes(BLOCK * 2), bytes(16))],
    "a size without end": [File(b"a", 1, True, 1 << 62, BLOCK, FILE)],
    "a size below nothing": [File(b"a", 1, True, -1, BLOCK, FILE)],
    "blocks of no size": [File(b"a", 1, True, 10, 1, FILE)],
}  # fmt: skip


@pytest.fixture
def sink(tmp_path: Path) -> TreeSink:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "precious").write_text("precious")
    (root / "here").symlink_to(outside)
    (root / "whole").write_text("whole")
    return TreeSink(root, DIGESTER)


def aimed(record: Record, outside: Path) -> Record:
    place = os.fsencode(outside)
    if isinstance(record, Symlink):
        return Symlink(record.path, record.target.replace(b"{outside}", place), record.meta)
    if isinstance(record, Link):
        return Link(record.path, record.target.replace(b"{outside}", place))
    return record


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records_are_refused_and_touch_nothing_outside(tmp_path: Path, sink: TreeSink, name: str) -> None:
    outside = tmp_path / "outside"
    with pytest.raises(BadInput) as caught:
        sink.apply([aimed(record, outside) for record in HOSTILE[name]])
    sink.close()
    assert "\n" not in str(caught.value)
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "precious"
    assert (outside / "precious").stat().st_nlink == 1
    assert (tmp_path / "root/whole").read_text() == "whole"
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    "records",
    [[Removed(b"here/precious")], [Stash(b"here/precious", 1), Unstash(1, b"mine")]],
    ids=["removed", "moved"],
)
def test_what_is_behind_a_link_is_not_there(tmp_path: Path, sink: TreeSink, records: list[Record]) -> None:
    sink.apply(records)
    sink.end_pass()
    assert (tmp_path / "outside/precious").read_text() == "precious"
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["here", "whole"]


def test_replacing_a_link_does_not_write_through_it(tmp_path: Path, sink: TreeSink) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "root/name").symlink_to(tmp_path / "precious")
    sink.apply(file(b"name", b"mine", meta=Meta(stat.S_IFREG | 0o777, 5, 5, 0)))
    assert (tmp_path / "root/name").read_bytes() == b"mine"
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "precious").stat().st_mode & 0o777 != 0o777


def test_a_device_never_comes_to_be(tmp_path: Path, sink: TreeSink) -> None:
    sink.apply([Special(b"whiteout", Meta(stat.S_IFCHR | 0o600, 0, 0, 0))])
    assert (tmp_path / "root/whiteout").lstat().st_rdev == 0


def test_attributes_that_a_peer_has_no_business_with_are_left_out(tmp_path: Path, sink: TreeSink) -> None:
    hostile = {"trusted.overlay.redirect": b"/etc", "security.selinux": b"x", "trusted.overlay.metacopy": b""}
    sink.apply(file(b"f", meta=Meta(stat.S_IFREG | 0o644, 0, 0, 0, hostile)))
    assert os.listxattr(tmp_path / "root/f") == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda records: [records[0], Data(0, b"y" * 9000, records[1].digests), records[2]],
        lambda records: [records[0], records[2]],
        lambda records: [*records[:2], FileEnd(bytes(16))],
        lambda records: [records[0], Data(0, records[1].content[:BLOCK], records[1].digests[:16]), records[2]],
    ],
    ids=["contents changed on the way", "contents lost", "digest changed", "a part lost"],
)
def test_what_arrives_damaged_fails(sink: TreeSink, spoil: Callable[[list[Record]], list[Record]]) -> None:
    with pytest.raises(StepFailed, match=r"/f is not what the source sent: .* differ") as caught:
        sink.apply(spoil(file(b"f", b"x" * 9000)))
    assert "\n" not in str(caught.value)


def test_a_disk_that_keeps_something_else_is_found(
    tmp_path: Path, sink: TreeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is read back: a disk, here one bit of it, that does not hold what was written to it."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, bytes([data[0] ^ 1]) + bytes(data[1:]), at))
    with pytest.raises(StepFailed, match="is not what the source sent: bytes 0 to 9000 differ"):
        sink.apply(file(b"f", b"x" * 9000))


def test_a_pass_that_ends_in_a_file_is_refused(sink: TreeSink) -> None:
    sink.apply(file(b"f")[:2])
    with pytest.raises(BadInput, match="ended in the middle of a file"):
        sink.end_pass()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], check=True)
    sink = TreeSink(small, DIGESTER)
    try:
        with pytest.raises(WhimbrelError, match="no space is left"):
            sink.apply(file(b"f", os.urandom(1 << 20)))
    finally:
        sink.close()
        subprocess.run(["umount", small], check=True)
