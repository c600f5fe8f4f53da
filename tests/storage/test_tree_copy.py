"""What changed of a folder is found, crosses as little of it as can be, and is equal at the other end."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from trees import Pair, Zeros

from whimbrel.model.errors import Refused
from whimbrel.storage.blocks import SMALLEST_BLOCK_BYTES
from whimbrel.storage.listing import allocated_bytes
from whimbrel.storage.openfiles import mapped_files
from whimbrel.storage.records import Data, File, Link, Record, Stash

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for owners, whiteouts and trusted attributes")
MB = 1 << 20
SEEDS = int(os.environ.get("WHIMBREL_CHURN_SEEDS", "25"))


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
    pair.follow()  # again: it was written within the last tick of the clock
    assert pair.content_bytes == 0
    (pair.here / "grown").write_text("grown up")
    (pair.here / "gone").unlink()
    shutil.rmtree(pair.here / "folder")
    (pair.here / "kind").unlink()
    (pair.here / "kind").mkdir()
    (pair.here / "kind/child").write_text("c")
    os.chown(pair.here / "owner", 5, 5)
    pair.follow()
    assert {"folder", "gone", "grown", "kind", "kind/child", "owner"} <= set(pair.touched())
    assert pair.content_bytes == len("grown up") + len("c")
    # no look at what was removed: a new file may have got the number of an old one, and counts as that one renamed
    pair.assert_equal()


def test_same_size_and_time_do_not_hide_a_change(pair: Pair) -> None:
    (pair.here / "sly").write_text("one")
    os.utime(pair.here / "sly", ns=(5, 5))
    pair.follow()
    (pair.here / "sly").write_text("two")
    os.utime(pair.here / "sly", ns=(5, 5))
    pair.follow()
    assert pair.content_bytes == 3
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


def test_only_changed_blocks_of_a_large_file_cross(pair: Pair) -> None:
    path = pair.here / "large"
    path.write_bytes(os.urandom(8 * MB))
    pair.follow()
    assert pair.content_bytes == 8 * MB
    with path.open("r+b") as file:
        for at in (5, 3 * MB - 2, 8 * MB - 1):
            file.seek(at)
            file.write(b"abc" if at + 3 <= 8 * MB else b"z")
    pair.follow()
    assert pair.content_bytes == 4 * SMALLEST_BLOCK_BYTES
    pair.assert_equal()


def test_an_appended_log_crosses_by_what_was_appended(pair: Pair) -> None:
    with (pair.here / "log").open("ab", buffering=0) as log:
        log.write(os.urandom(3 * MB + 100))
        pair.follow()
        for _ in range(5):
            log.write(b"one more line\n")
            pair.follow()
            assert pair.content_bytes <= SMALLEST_BLOCK_BYTES
            pair.assert_equal()


@pytest.mark.parametrize("sizes", [(5000, 8192, 5000), (MB, 0, MB), (MB + 1, 4096, 4097, 10, 0, 3 * MB)])
def test_files_shrink_and_grow(pair: Pair, sizes: tuple[int, ...]) -> None:
    path = pair.here / "file"
    for size in sizes:
        with path.open("a+b") as file:
            file.truncate(min(size, path.stat().st_size))
            file.write(os.urandom(size - path.stat().st_size))
        pair.follow()
        pair.assert_equal()
        os.truncate(path, size + 6000)  # zeros follow a block that was short
        pair.follow()
        pair.assert_equal()


def test_holes_stay_holes(pair: Pair) -> None:
    path, copy = pair.here / "sparse", pair.there / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        for at in (0, 1 << 30, (1 << 40) - 5):
            file.seek(at)
            file.write(b"here")
    pair.follow()
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (copy.stat().st_size, copy.stat().st_mtime_ns)
    assert copy.stat().st_blocks * 512 < 20 * MB
    assert pair.content_bytes < 20 * MB
    for at in (0, 1 << 30, (1 << 40) - 5):
        with copy.open("rb") as file:
            file.seek(at)
            assert file.read(4) == b"here"
    assert allocated_bytes(pair.here) < 20 * MB


def test_what_became_zeros_becomes_a_hole(pair: Pair) -> None:
    path = pair.here / "file"
    path.write_bytes(os.urandom(4 * MB))
    pair.follow()
    with path.open("r+b") as file:
        file.seek(MB)
        file.write(bytes(MB))
    pair.follow()
    assert pair.content_bytes == 0
    assert [(record.offset, record.length) for record in pair.of(Zeros)] == [(MB + at, 1 << 18) for at in
                                                                             range(0, MB, 1 << 18)]  # fmt: skip
    pair.assert_equal()
    assert (pair.there / "file").stat().st_blocks * 512 <= 3 * MB + 65536


def test_a_renamed_file_does_not_cross_again(pair: Pair) -> None:
    (pair.here / "old").write_bytes(os.urandom(MB))
    (pair.here / "in").mkdir()
    pair.follow()
    os.rename(pair.here / "old", pair.here / "in/new")
    pair.follow()
    assert pair.content_bytes == 0
    pair.assert_equal()


def test_a_renamed_folder_does_not_cross_again(pair: Pair) -> None:
    (pair.here / "a/b/c").mkdir(parents=True)
    for name in ("a/1", "a/b/2", "a/b/c/3"):
        (pair.here / name).write_bytes(os.urandom(10_000))
    pair.follow()
    (pair.here / "z").mkdir()
    os.rename(pair.here / "a/b", pair.here / "z/b")
    os.rename(pair.here / "a", pair.here / "aa")
    os.rename(pair.here / "z/b/c/3", pair.here / "three")
    pair.follow()
    assert pair.content_bytes == 0
    pair.assert_equal()


def test_names_are_exchanged(pair: Pair) -> None:
    for name in ("one", "two", "three"):
        (pair.here / name).mkdir()
        (pair.here / name / "file").write_bytes(name.encode() * 1000)
        (pair.here / f"{name}.txt").write_bytes(name.encode() * 900)
    pair.follow()
    for suffix in ("", ".txt"):
        os.rename(pair.here / f"one{suffix}", pair.here / "aside")
        os.rename(pair.here / f"two{suffix}", pair.here / f"one{suffix}")
        os.rename(pair.here / f"three{suffix}", pair.here / f"two{suffix}")
        os.rename(pair.here / "aside", pair.here / f"three{suffix}")
    pair.follow()
    assert pair.content_bytes == 0
    assert len(pair.of(Stash)) == 6
    pair.assert_equal()


def test_a_file_saved_by_rename_crosses_by_its_blocks(pair: Pair) -> None:
    """Editors and databases write a new file and put it in the place of the old one."""
    content = bytearray(os.urandom(2 * MB))
    (pair.here / "settings").write_bytes(content)
    pair.follow()
    content[MB] ^= 1
    (pair.here / "settings.new").write_bytes(content)
    pair.follow()
    os.rename(pair.here / "settings.new", pair.here / "settings")
    pair.follow()
    assert pair.content_bytes == 0
    pair.assert_equal()


def test_attributes_come_and_go(pair: Pair) -> None:
    path = pair.here / "file"
    path.write_bytes(os.urandom(2 * MB))
    acl = bytes.fromhex("0200000001000600ffffffff020006000a00000004000400ffffffff10000600ffffffff20000400ffffffff")
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "system.posix_acl_access", acl)
    pair.follow()
    pair.assert_equal()
    os.removexattr(path, "user.one")
    os.removexattr(path, "system.posix_acl_access")
    os.setxattr(path, "user.two", b"2")
    os.chown(path, 3, 4)
    pair.follow()
    assert pair.content_bytes == 0
    pair.assert_equal()


def test_what_a_folder_would_give_its_new_files_is_not_added(pair: Pair) -> None:
    """A folder's default access list becomes that of each file that is made in it: the copy has what the file has."""
    acl = bytes.fromhex("0200000001000600ffffffff020006000a00000004000400ffffffff10000600ffffffff20000400ffffffff")
    for name in ("gives", "plain"):
        (pair.here / name).mkdir()
        (pair.here / name / "before").write_text("made before the list")
    os.setxattr(pair.here / "gives", "system.posix_acl_default", acl)
    (pair.here / "gives/after").write_text("has the list")
    pair.follow()
    pair.assert_equal()
    for name in ("gives", "plain"):
        (pair.here / name / "later").write_text("another pass")
        (pair.here / name / "stripped").write_text("lost it again")
    os.removexattr(pair.here / "gives/stripped", "system.posix_acl_access")
    pair.follow()
    pair.assert_equal()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0])
def test_modes_and_owners_do_not_depend_on_who_makes_the_copy(pair: Pair, mask: int) -> None:
    (pair.here / "group").mkdir()
    os.chown(pair.here / "group", 0, 77)
    os.chmod(pair.here / "group", 0o2775)  # what is made in it belongs to its group
    for folder in (pair.here, pair.here / "group"):
        for number, mode in enumerate((0o644, 0o600, 0o777, 0, 0o4755, 0o2711, 0o1666)):
            for owner in (0, 1000):
                path = folder / f"{number}-{owner}"
                path.write_text("x")
                os.chown(path, owner, owner)
                os.chmod(path, mode)
    mask = os.umask(mask)
    try:
        pair.follow()
    finally:
        os.umask(mask)
    pair.assert_equal()


@pytest.mark.parametrize("layout", [(0, 5000), (3, 9000), (4096, 8192), (9000, 9000), (0, 3 * MB), (MB, 5 * MB + 1)])
def test_zeros_at_the_end_of_a_new_file(pair: Pair, layout: tuple[int, int]) -> None:
    data, size = layout
    for name, hole in (("hole", True), ("written", False)):
        (pair.here / name).write_bytes(os.urandom(data) + (b"" if hole else bytes(size - data)))
        os.truncate(pair.here / name, size)
    pair.follow()
    pair.assert_equal()


def test_the_folder_itself_is_carried(pair: Pair) -> None:
    os.chown(pair.here, 999, 999)
    os.chmod(pair.here, 0o2750)
    os.setxattr(pair.here, "user.note", b"x")
    pair.follow()
    pair.assert_equal()


def test_a_look_at_folders_finds_names_and_asks_for_nothing_else(pair: Pair) -> None:
    """CRIU links files that are open and have no name; it writes to none."""
    for folder in ("quiet", "busy"):
        (pair.here / folder).mkdir()
        (pair.here / folder / "file").write_bytes(b"1" * 5000)
    while pair.follow():  # until nothing is younger than a tick of the clock
        pass
    os.link(pair.here / "busy/file", pair.here / "busy/link_remap.1")
    (pair.here / "quiet/file").write_bytes(b"2" * 5000)
    records: list[Record] = []
    pair.copy.source.look_at_names()
    pair.copy.source.send(records.append)
    assert [record.path for record in records if isinstance(record, Link)] == [b"busy/link_remap.1"]
    assert not any(isinstance(record, Data) for record in records)
    assert not any(isinstance(record, File) and record.path == b"quiet/file" for record in records)


def test_a_link_is_never_read_through(tmp_path: Path) -> None:
    """A container puts a link in the place of a folder while it is looked at: nothing behind it may cross."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    pair = Pair(tmp_path)
    (pair.here / "a/b").mkdir(parents=True)
    (pair.here / "a/b/key").write_text("mine")

    def swap(_: Record) -> None:
        if not (pair.here / "a/b").is_symlink():
            shutil.rmtree(pair.here / "a/b")
            (pair.here / "a/b").symlink_to(tmp_path / "secret")

    pair.copy.follow(on_record=swap)
    assert not (pair.there / "a/b/key").exists()
    pair.follow()
    pair.assert_equal()


def test_device_nodes_of_every_container_cross(pair: Pair) -> None:
    for name, device in {"null": (1, 3), "urandom": (1, 9), "console": (5, 1), "ptmx": (5, 2)}.items():
        os.mknod(pair.here / name, stat.S_IFCHR | 0o620, os.makedev(*device))
    pair.follow()
    pair.assert_equal()


def test_a_device_is_refused(pair: Pair) -> None:
    os.mknod(pair.here / "disk", stat.S_IFBLK | 0o600, os.makedev(254, 0))
    with pytest.raises(Refused, match="is a device node"):
        pair.follow()


def test_files_come_and_go_while_they_are_read(pair: Pair) -> None:
    """Whatever happens to a folder during a pass, a quiet one afterwards makes the copy equal."""
    rng = random.Random(7)
    churn = Churn(pair.here, rng)
    for _ in range(40):
        churn.step()
    for _ in range(10):
        pair.copy.follow(on_record=lambda _: churn.step() if rng.random() < 0.3 else None)
    pair.follow()
    pair.assert_equal()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_changes(tmp_path: Path, seed: int) -> None:
    pair = Pair(tmp_path)
    rng = random.Random(seed)
    churn = Churn(pair.here, rng)
    for _ in range(8):
        for _ in range(rng.randrange(1, 30)):
            churn.step()
        pair.follow()
        pair.assert_equal()


class Churn:
    """Random changes of a small tree: names collide often."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self._root, self._rng = root, rng
        self._steps: list[Callable[[], None]] = [
            self._make_folder, self._write, self._write, self._change, self._truncate, self._rename, self._rename,
            self._rename, self._exchange, self._link, self._symlink, self._remove, self._metadata, self._hole,
        ]  # fmt: skip

    def step(self) -> None:
        try:
            self._rng.choice(self._steps)()
        except OSError:
            return  # no such thing just now: a folder in itself, a file for a folder

    def _folders(self) -> list[Path]:
        return [self._root, *(path for path in self._root.rglob("*") if path.is_dir() and not path.is_symlink())]

    def _files(self) -> list[Path]:
        return [path for path in self._root.rglob("*") if path.is_file() and not path.is_symlink()] or [self._new()]

    def _any(self) -> Path:
        return self._rng.choice([*self._root.rglob("*"), self._new()])

    def _new(self) -> Path:
        return self._rng.choice(self._folders()) / self._rng.choice("abcde")

    def _make_folder(self) -> None:
        self._new().mkdir()

    def _write(self) -> None:
        self._new().write_bytes(self._rng.randbytes(self._rng.choice((0, 10, 4096, 9000, 300_000))))

    def _change(self) -> None:
        with self._rng.choice(self._files()).open("r+b") as file:
            file.seek(self._rng.randrange(10_000))
            file.write(self._rng.randbytes(self._rng.choice((1, 4096))))

    def _truncate(self) -> None:
        os.truncate(self._rng.choice(self._files()), self._rng.choice((0, 100, 5000, 200_000)))

    def _rename(self) -> None:
        os.rename(self._any(), self._new())

    def _exchange(self) -> None:
        one, other, aside = self._any(), self._any(), self._root / "aside"
        os.rename(one, aside)
        try:
            os.rename(other, one)
        finally:
            os.rename(aside, other if not other.exists() else one)

    def _link(self) -> None:
        os.link(self._rng.choice(self._files()), self._new())

    def _symlink(self) -> None:
        os.symlink("somewhere", self._new())

    def _remove(self) -> None:
        path = self._any()
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _metadata(self) -> None:
        path = self._any()
        os.chown(path, self._rng.randrange(5), 0, follow_symlinks=False)
        if not path.is_symlink():
            os.chmod(path, self._rng.choice((0o600, 0o755, 0o4711)))
            os.setxattr(path, "user.x", self._rng.randbytes(3))

    def _hole(self) -> None:
        with self._rng.choice(self._files()).open("r+b") as file:
            file.seek(self._rng.randrange(500_000))
            file.truncate()
