"""A lister that is told what was written finds what one finds that asks about every file."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marks import thorough
from whimbrel.storage import listing, watch
from whimbrel.storage.listing import Lister, Listing
from whimbrel.storage.openfiles import held_files, mapped_files
from whimbrel.storage.watch import Watch

pytestmark = pytest.mark.real
FOLDERS, FILES = 12, 30


class Overlay:
    """`merged` is what the container writes to, `upper` what is carried."""

    def __init__(self, place: Path) -> None:
        self.lower, self.upper, self.work, self.merged = (place / name for name in ("lower", "upper", "work", "merged"))
        for folder in (self.lower, self.upper, self.work, self.merged):
            folder.mkdir()
        for top in (self.lower / "below", self.lower / "both", self.upper / "both", self.upper / "above"):
            for number in range(FOLDERS):
                folder = top / f"d{number}"
                folder.mkdir(parents=True)
                for name in range(FILES):
                    (folder / f"{top.parent.name}{name}").write_bytes(b"x" * name)
        options = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.merged)], check=True)


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    place = tmp_path / "fs"  # overlays do not nest: where the tests' own folder is on one this needs a tmpfs
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    try:
        made = Overlay(place)
        yield made
    finally:
        subprocess.run(["umount", str(place / "merged")], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["umount", str(place)], check=True)


class Pair:
    """Two listers of one folder; only the first has a watch. What is written is written by this process, whose root is
    another: only the root of what it sees is moved."""

    def __init__(self, folder: Path, seen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watch, "_as_seen", lambda *_: os.open(seen, os.O_RDONLY | os.O_DIRECTORY))
        self.watch = Watch(folder, os.getpid())
        self.watched, self.plain = Lister(folder, watch=self.watch), Lister(folder)
        self._seen = f"{str(seen).lstrip('/')}/"

    def look(self) -> set[str]:
        """What is new by the one that has no watch; both must have found it."""
        self.watched.listen()
        mapped, held = self.here(mapped_files([os.getpid()])), held_files([os.getpid()])
        told, found = self.watched.look(mapped, None if held is None else self.here(held)), self.plain.look(mapped)
        before, after = comparable(found.before), comparable(found.after)
        assert comparable(told.after) == after
        assert told.gone == found.gone
        really = {path for path in found.changed if before.get(path) != after[path]}
        assert really <= set(told.changed)
        return really

    def here(self, paths: set[str]) -> set[str]:
        return {path.removeprefix(self._seen) for path in paths if path.startswith(self._seen)}

    def close(self) -> None:
        self.watched.close()
        self.plain.close()
        self.watch.close()


def comparable(listing: Listing) -> Listing:
    """An overlay sets marks of its own on folders that are opened through it, and all its whiteouts are one file: their
    times are left out."""
    return {
        path: entry._replace(ctime_ns=0, links=0) if stat.S_ISDIR(entry.mode) or stat.S_ISCHR(entry.mode) else entry
        for path, entry in listing.items()
    }


@contextlib.contextmanager
def pair_of(folder: Path, seen: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    pair = Pair(folder, seen, monkeypatch)
    try:
        yield pair
    finally:
        pair.close()


@pytest.fixture
def pair(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(listing, "WATCHED_FROM", 1)
    with pair_of(overlay.upper, overlay.merged, monkeypatch) as made:
        made.look()
        time.sleep(0.03)
        made.look()  # nothing is as young as a tick of the clock any more
        yield made


def the_file(root: Path, rng: random.Random) -> Path:
    files = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    return rng.choice([path for path in files if path.is_file() and not path.is_symlink()])


def a_folder(root: Path, rng: random.Random) -> Path:
    return rng.choice([Path(folder) for folder, _, _ in os.walk(root)])


def write(root: Path, rng: random.Random) -> None:
    with the_file(root, rng).open("r+b") as file:
        file.write(rng.randbytes(5))


def append_under_another_name(root: Path, rng: random.Random) -> None:
    path = the_file(root, rng)
    with path.open("ab") as file:
        path.rename(a_folder(root, rng) / f"n{rng.random()}")
        file.write(b"later")


def write_when_its_folder_has_moved(root: Path, rng: random.Random) -> None:
    path = the_file(root, rng)
    if path.parent.parent in (root, root.parent):
        return
    with path.open("ab") as file:
        with contextlib.suppress(OSError):  # a folder of the lower layer may not be renamed
            path.parent.rename(path.parent.parent / f"m{rng.random()}")
        file.write(b"later")


def truncate(root: Path, rng: random.Random) -> None:
    os.truncate(the_file(root, rng), rng.randrange(100))


def chmod(root: Path, rng: random.Random) -> None:
    the_file(root, rng).chmod(rng.choice([0o600, 0o644, 0o755]))


def xattr(root: Path, rng: random.Random) -> None:
    with contextlib.suppress(OSError):  # a file system without
        os.setxattr(the_file(root, rng), "trusted.x", rng.randbytes(4))


def touch(root: Path, rng: random.Random) -> None:
    os.utime(the_file(root, rng), (rng.random(), rng.random()))


def link_and_write(root: Path, rng: random.Random) -> None:
    path = the_file(root, rng)
    other = a_folder(root, rng) / f"l{rng.random()}"
    os.link(path, other)
    with rng.choice([path, other]).open("ab") as file:
        if rng.random() < 0.5:
            path.unlink()
        file.write(b"more")


def remove(root: Path, rng: random.Random) -> None:
    the_file(root, rng).unlink()


def replace(root: Path, rng: random.Random) -> None:
    the_file(root, rng).rename(the_file(root, rng))


def make(root: Path, rng: random.Random) -> None:
    folder = a_folder(root, rng) / f"f{rng.random()}"
    folder.mkdir()
    (folder / "new").write_bytes(b"n")


def make_for_a_moment(root: Path, rng: random.Random) -> None:
    path = a_folder(root, rng) / f"t{rng.random()}"
    path.write_bytes(b"gone")
    path.unlink()


def without_a_name(root: Path, rng: random.Random) -> None:
    fd = os.open(a_folder(root, rng), os.O_RDWR | os.O_TMPFILE)
    os.write(fd, b"nameless")
    at_fdcwd, follow = -100, 0x400
    target = os.fsencode(root / f"o{rng.random()}")
    assert ctypes.CDLL(None).linkat(at_fdcwd, f"/proc/self/fd/{fd}".encode(), at_fdcwd, target, follow) == 0
    os.write(fd, b"named")
    os.close(fd)


def copy_range(root: Path, rng: random.Random) -> None:
    with the_file(root, rng).open("rb") as source, the_file(root, rng).open("r+b") as target:
        with contextlib.suppress(OSError):
            os.copy_file_range(source.fileno(), target.fileno(), 10)
        os.posix_fallocate(target.fileno(), 0, rng.randrange(1, 5000))


ALL: tuple[Callable[[Path, random.Random], None], ...] = (
    write, append_under_another_name, write_when_its_folder_has_moved, truncate, chmod, xattr, touch, link_and_write,
    remove, replace, make, make_for_a_moment, without_a_name, copy_range,
)  # fmt: skip


@pytest.mark.parametrize("seed", [0, *thorough(1, 2)])
def test_nothing_that_is_done_through_an_overlay_is_missed(pair: Pair, overlay: Overlay, seed: int) -> None:
    rng = random.Random(seed)
    found = 0
    for _ in range(60):
        for _ in range(rng.choice([0, 1, 1, 2, 5])):
            rng.choice(ALL)(overlay.merged, rng)
        found += len(pair.look())
    assert found > 60


def test_what_nobody_wrote_to_is_not_asked_about(pair: Pair, overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = os.stat

    def stat(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        asked.append(path)
        return real(path, *arguments, **named)

    file = overlay.merged / "above" / "d3" / "upper7"
    file.write_bytes(b"other")
    monkeypatch.setattr(os, "stat", stat)
    pair.watched.listen()
    told = pair.watched.look((), ())
    monkeypatch.undo()
    assert "above/d3/upper7" in told.changed
    folders = 1 + 2 * (1 + FOLDERS)
    assert len(asked) == folders + 1


def test_more_than_the_kernel_keeps(pair: Pair, overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the thread had come too late: all files are asked about again."""
    (overlay.merged / "above" / "d0" / "upper0").write_bytes(b"lost")
    monkeypatch.setattr(pair.watch, "touched", lambda: None)
    assert "above/d0/upper0" in pair.look()


def test_folders_that_cannot_be_watched_are_asked_about(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "WATCHED_FROM", 1)
    with pair_of(overlay.upper, overlay.merged, monkeypatch) as pair:
        real = pair.watch.add
        monkeypatch.setattr(pair.watch, "add", lambda folder: "d5" not in folder and real(folder))
        pair.look()
        time.sleep(0.03)
        pair.look()
        for number in (4, 5):
            (overlay.merged / "above" / f"d{number}" / "upper9").write_bytes(b"other")
        assert {"above/d4/upper9", "above/d5/upper9"} <= pair.look()


def test_few_files_need_no_watch(overlay: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written past the watch, which nobody does, it is found all the same."""
    with pair_of(overlay.upper, overlay.merged, monkeypatch) as pair:
        pair.look()
        (overlay.upper / "above" / "d1" / "upper1").write_bytes(b"past it")
        assert "above/d1/upper1" in pair.look()


def aio_write(fd: int, data: bytes) -> None:
    """By io_submit, of which inotify tells nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    context = ctypes.c_ulong(0)
    assert libc.syscall(206, 1, ctypes.byref(context)) == 0  # io_setup
    buffer = ctypes.create_string_buffer(data, len(data))
    # struct iocb: data, key, rw_flags, opcode (1: pwrite), priority, fd, buffer, size, offset, …
    block = struct.pack("<QIiHhIQQqQII", 0, 0, 0, 1, 0, fd, ctypes.addressof(buffer), len(data), 0, 0, 0, 0)
    blocks = (ctypes.c_char_p * 1)(block)
    assert libc.syscall(209, context, 1, blocks) == 1  # io_submit
    events = ctypes.create_string_buffer(32)
    assert libc.syscall(208, context, 1, 1, events, None) == 1  # io_getevents
    libc.syscall(207, context)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize("closed", [False, True])
def test_an_asynchronous_write(pair: Pair, overlay: Overlay, closed: bool) -> None:
    """As databases do it: found while the file is open, and when it was closed before the next look."""
    path = overlay.merged / "above" / "d2" / "upper9"
    fd = os.open(path, os.O_RDWR)
    try:
        pair.look()
        time.sleep(0.03)
        aio_write(fd, b"quietly")
    finally:
        if closed:
            os.close(fd)
    assert "above/d2/upper9" in pair.look()
    if not closed:
        os.close(fd)


@pytest.mark.parametrize("kept", [False, True])
def test_stores_into_a_mapping_that_is_gone_at_the_next_look(pair: Pair, overlay: Overlay, kept: bool) -> None:
    path = overlay.merged / "above" / "d2" / "upper9"
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 4096)
    pair.look()
    time.sleep(0.03)
    with mmap.mmap(fd, 4096) as mapping:
        if not kept:
            os.close(fd)
        mapping[:6] = b"stored"
    pair.watched.listen()
    mapped, held = pair.here(mapped_files([os.getpid()])), held_files([os.getpid()])
    assert held is not None
    told = pair.watched.look(mapped, pair.here(held))
    now = path.stat().st_ctime_ns != told.before["above/d2/upper9"].ctime_ns
    assert "above/d2/upper9" in told.changed or (kept and not now), "a file without a time to tell of it"
    if kept:
        os.close(fd)


def test_a_file_that_its_process_knows_by_another_name(pair: Pair, overlay: Overlay) -> None:
    """Through a mount inside the container, say: then all are asked about."""
    (overlay.upper / "above" / "d1" / "upper1").write_bytes(b"past the watch")
    pair.watched.listen()
    assert "above/d1/upper1" in pair.watched.look((), {"elsewhere/upper1"}).changed


def test_the_watch_is_of_what_the_process_sees(tmp_path: Path) -> None:
    """Not of another folder of that name, nor below a root of its own."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    inside = str(folder).lstrip("/")
    seen = Watch(folder, os.getpid(), inside)
    assert seen.add("")
    assert seen.add("sub")
    assert not seen.add("none")
    seen.close()
    with pytest.raises(OSError, match="another folder"):
        Watch(folder, os.getpid(), str(tmp_path).lstrip("/"))
    (tmp_path / "link").symlink_to(folder)
    Watch(folder, os.getpid(), f"{str(tmp_path).lstrip('/')}/link").close()
    code = f"import os, time; os.chroot({str(tmp_path)!r}); print('there', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(OSError, match="changed its root"):
            Watch(folder, child.pid, "data")
    finally:
        child.kill()
        child.communicate()


def test_a_mount_that_is_carried_too_is_watched(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder / "sub")], check=True)
    try:
        seen = Watch(folder, os.getpid(), str(folder).lstrip("/"))
        assert seen.add("")
        assert seen.add("sub"), "the same for whoever carries it"
        seen.close()
    finally:
        subprocess.run(["umount", str(folder / "sub")], check=True)
