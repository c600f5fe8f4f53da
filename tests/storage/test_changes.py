"""What a folder's changes are, and that they arrive: equal at the other end, and never outside it."""

from __future__ import annotations

import copy
import io
import mmap
import os
import shutil
import socket
import stat
import tarfile
from pathlib import Path

import pytest
from oci_maker import file, folder, hard_link, link, special, tar

from whimbrel.model.errors import BadInput
from whimbrel.storage.archive import apply, pack
from whimbrel.storage.listing import changed, mapped_files, snapshot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for owners, whiteouts and trusted attributes")


class Pair:
    """A folder that changes, and its copy that follows."""

    def __init__(self, path: Path) -> None:
        self.here, self.there = path / "here", path / "there"
        self.here.mkdir()
        self.there.mkdir()
        self.seen = snapshot(self.here)

    def follow(self, always: tuple[str, ...] = ()) -> list[str]:
        now = snapshot(self.here)
        changes = changed(self.seen, now, always=always)
        self.seen = now
        stream = io.BytesIO()
        pack(self.here, changes, stream)
        stream.seek(0)
        apply(self.there, stream)
        return [*changes.changed, *(f"-{path}" for path in changes.removed)]

    def assert_equal(self) -> None:
        assert _facts(self.here) == _facts(self.there)


def _facts(root: Path) -> dict[str, object]:
    facts: dict[str, object] = {}
    groups: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        regular = stat.S_ISREG(status.st_mode)
        facts[name] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_mtime_ns,
            path.read_bytes() if regular else os.readlink(path) if path.is_symlink() else None,
            groups.setdefault(status.st_ino, name) if regular else None,
            {key: os.getxattr(path, key, follow_symlinks=False)
             for key in os.listxattr(path, follow_symlinks=False)},
        )  # fmt: skip
    return facts


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_everything_of_a_file_arrives(pair: Pair) -> None:
    here = pair.here
    (here / "a/b").mkdir(parents=True)
    (here / "a/b/deep").write_bytes(os.urandom(300_000))
    (here / "empty").touch()
    os.chown(here / "empty", 1000, 70000)
    os.chmod(here / "empty", 0o6751)
    os.utime(here / "empty", ns=(1, 1_234_567_890_123_456_789))
    os.setxattr(here / "empty", "user.binary", bytes(range(256)))
    os.setxattr(here / "empty", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(here / "a", "trusted.overlay.opaque", b"y")
    os.symlink("/etc/shadow", here / "a/link")
    os.symlink("nowhere", here / "dangling")
    os.link(here / "a/b/deep", here / "again")
    os.mkfifo(here / "pipe", 0o640)
    os.mknod(here / "whiteout", stat.S_IFCHR, 0)
    (here / "odd \udcff\nname").write_text("x")
    os.chmod(here / "a", 0o500)
    pair.follow()
    pair.assert_equal()
    assert (pair.there / "again").stat().st_nlink == 2


def test_only_changes_cross(pair: Pair) -> None:
    for name in ("same", "grown", "gone", "folder/inner", "kind", "owner"):
        (pair.here / name).parent.mkdir(exist_ok=True)
        (pair.here / name).write_text(name)
    pair.follow()
    assert pair.follow() == []
    (pair.here / "grown").write_text("grown up")
    (pair.here / "gone").unlink()
    shutil.rmtree(pair.here / "folder")
    (pair.here / "kind").unlink()
    (pair.here / "kind").mkdir()
    (pair.here / "kind/child").write_text("c")
    os.chown(pair.here / "owner", 5, 5)
    assert sorted(pair.follow()) == ["-folder", "-gone", "grown", "kind", "kind/child", "owner"]
    pair.assert_equal()


def test_same_size_and_time_do_not_hide_a_change(pair: Pair) -> None:
    (pair.here / "sly").write_text("one")
    os.utime(pair.here / "sly", ns=(5, 5))
    pair.follow()
    (pair.here / "sly").write_text("two")
    os.utime(pair.here / "sly", ns=(5, 5))
    assert pair.follow() == ["sly"]
    pair.assert_equal()


def test_names_of_one_file_stay_together(pair: Pair) -> None:
    (pair.here / "one").write_text("1")
    pair.follow()
    os.link(pair.here / "one", pair.here / "two")
    pair.follow()
    pair.assert_equal()
    with (pair.here / "two").open("a") as open_file:
        open_file.write("more")
    pair.follow()
    pair.assert_equal()
    (pair.here / "one").unlink()
    pair.follow()
    pair.assert_equal()


def test_folder_becomes_file_and_back(pair: Pair) -> None:
    (pair.here / "x/y").mkdir(parents=True)
    (pair.here / "x/y/z").write_text("z")
    pair.follow()
    shutil.rmtree(pair.here / "x")
    (pair.here / "x").write_text("now a file")
    pair.follow()
    pair.assert_equal()
    (pair.here / "x").unlink()
    (pair.here / "x").mkdir()
    pair.follow()
    pair.assert_equal()


def test_sockets_are_left_out(pair: Pair) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(pair.here / "socket"))
        (pair.here / "file").touch()
        pair.follow()
    assert [path.name for path in pair.there.iterdir()] == ["file"]


def test_stores_into_a_mapping_are_found_though_no_time_moves(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    path = pair.here / "mapped"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096) as view:
        view[0] = 1
        found = mapped_files([os.getpid()])
        assert str(path).lstrip("/") in found
        pair.follow()
        view[1] = 2  # the page is writable already: the kernel sees nothing
        pair.follow(always=("mapped", "not there"))
        pair.assert_equal()
    assert str(path).lstrip("/") not in mapped_files([os.getpid(), 2**22 - 1])


def test_file_that_shrinks_under_the_reader_keeps_the_stream_whole(pair: Pair) -> None:
    (pair.here / "shrinks").write_bytes(b"x" * 100_000)
    (pair.here / "then").write_text("intact")
    changes = changed({}, snapshot(pair.here))

    class Shrinking(io.BytesIO):
        def write(self, data: object) -> int:
            os.truncate(pair.here / "shrinks", 10)
            return super().write(data)  # type: ignore[arg-type]

    stream = Shrinking()
    pack(pair.here, changes, stream)
    stream.seek(0)
    apply(pair.there, stream)
    assert (pair.there / "then").read_text() == "intact"


def test_file_that_vanished_is_left_out(pair: Pair) -> None:
    (pair.here / "gone").touch()
    changes = changed({}, snapshot(pair.here))
    (pair.here / "gone").unlink()
    stream = io.BytesIO()
    pack(pair.here, changes, stream)
    stream.seek(0)
    apply(pair.there, stream)
    assert list(pair.there.iterdir()) == []


HOSTILE = {
    "climbs": [file("../escaped")],
    "climbs inside": [folder("a"), file("a/../../escaped")],
    "absolute": [file("/tmp/escaped")],
    "through a link it brought": [link("out", "{outside}"), file("out/escaped")],
    "through a link that was here": [file("here/escaped")],
    "folder over a link, then through it": [link("out", "{outside}"), file("out/a/b/escaped")],
    "hard link out": [hard_link("mine", "../outside/precious")],
    "hard link absolute": [hard_link("mine", "{outside}/precious")],
    "hard link through a link": [link("out", "{outside}"), hard_link("mine", "out/precious")],
    "hard link to nothing": [hard_link("mine", "nothing")],
    "device": [special("mem", tarfile.CHRTYPE, devmajor=1, devminor=1)],
    "disk": [special("disk", tarfile.BLKTYPE, devmajor=254, devminor=0)],
    "removes outside": [file("../outside/precious", b"", pax_headers={"WHIMBREL.removed": "1"})],
    "removes through a link": [file("here/precious", b"", pax_headers={"WHIMBREL.removed": "1"})],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_stream_is_refused_and_touches_nothing_outside(tmp_path: Path, name: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "precious").write_text("precious")
    (root / "here").symlink_to(outside)
    members = []
    for member, content in HOSTILE[name]:
        named = copy.copy(member)
        named.linkname = member.linkname.format(outside=outside)
        members.append((named, content))
    with pytest.raises(BadInput) as caught:
        apply(root, io.BytesIO(tar(*members)))
    assert "\n" not in str(caught.value)
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "precious"
    assert (outside / "precious").stat().st_nlink == 1
    assert not list(tmp_path.rglob("escaped"))


def test_replacing_a_link_does_not_write_through_it(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    root = tmp_path / "root"
    root.mkdir()
    (root / "name").symlink_to(tmp_path / "precious")
    apply(root, io.BytesIO(tar(file("name", b"mine", mode=0o777))))
    assert (root / "name").read_bytes() == b"mine"
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "precious").stat().st_mode & 0o777 != 0o777


def test_attributes_that_a_peer_has_no_business_with_are_left_out(tmp_path: Path) -> None:
    hostile = {"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.security.selinux": "x"}
    apply(tmp_path, io.BytesIO(tar(file("f", b"", pax_headers=hostile))))
    assert os.listxattr(tmp_path / "f") == []
