"""Folders of other engines: a copy of the base is there already, or the folder shows lower layers too."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from trees import facts

from whimbrel.storage.layer import mount_overlay, unmount
from whimbrel.storage.records import File, Record
from whimbrel.storage.treecopy import TreeCopy, copy_folder

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")]


def image_at(root: Path) -> Path:
    for folder in ("etc/app", "etc/app/deep", "usr/lib", "var"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in ("one", "two"):
            (root / folder / name).write_text(f"{folder}/{name} of the image")
    os.link(root / "usr/lib/one", root / "usr/again")
    (root / "usr/link").symlink_to("lib/one")
    return root


# --- a base -----------------------------------------------------------------------------------------------
@pytest.fixture
def over_base(tmp_path: Path) -> Iterator[TreeCopy]:
    base = image_at(tmp_path / "base")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        copy_folder(base, tmp_path / name)
    copy = TreeCopy(tmp_path / "here", tmp_path / "there", base=base)
    yield copy
    copy.close()


def test_of_a_base_only_what_differs_crosses(tmp_path: Path, over_base: TreeCopy) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.rmtree(here / "var")
    (here / "etc/app/one").write_text("changed")
    (here / "etc/new").write_text("new")
    os.link(here / "usr/lib/two", here / "usr/third")
    (here / "usr/link").unlink()
    (here / "usr/link").symlink_to("lib/two")
    records: list[Record] = []
    over_base.follow(on_record=records.append)
    assert facts(there) == facts(here)
    # of the newly linked file only the links count differs, so it crosses with both its names
    assert [record.path for record in records if isinstance(record, File)] == [
        b"etc/app/one",
        b"etc/new",
        b"usr/lib/two",
    ]


def test_what_a_base_has_follows_later_changes(tmp_path: Path, over_base: TreeCopy) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    over_base.follow()
    with (here / "etc/app/one").open("a") as file:
        file.write("; and more")
    os.rename(here / "etc/app/deep", here / "moved")
    os.rename(here / "var/one", here / "var/renamed")
    os.link(here / "usr/lib/one", here / "usr/once more")
    (here / "var/two").unlink()
    over_base.follow()
    assert facts(there) == facts(here)


# --- lower layers that show -------------------------------------------------------------------------------
@dataclass
class Containers:
    """Two containers of one image; `copy` carries the writable layer of one into what the other shows."""

    here: Path
    there: Path
    copy: TreeCopy

    def assert_equal(self) -> None:
        assert facts(self.there) == facts(self.here)


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    image = image_at(tmp_path / "image")
    try:
        for side in ("here", "there"):
            for folder in ("upper", "work", "root"):
                (tmp_path / side / folder).mkdir(parents=True)
            mount_overlay(image, *(tmp_path / side / folder for folder in ("upper", "work", "root")))
        copy = TreeCopy(tmp_path / "here/upper", tmp_path / "there/root", merged=True)
        yield Containers(tmp_path / "here/root", tmp_path / "there/root", copy)
        copy.close()
    finally:
        for side in ("here", "there"):
            unmount(tmp_path / side / "root")


def test_what_a_layer_deletes_is_deleted_where_lower_layers_show(containers: Containers) -> None:
    here = containers.here
    (here / "etc/app/one").unlink()
    shutil.rmtree(here / "usr/lib")
    shutil.rmtree(here / "var")
    (here / "var").mkdir()  # opaque: nothing of the image's folder may show
    (here / "var/fresh").write_text("fresh")
    containers.copy.follow()
    containers.assert_equal()
    assert [path.name for path in (containers.there / "var").iterdir()] == ["fresh"]
    (here / "usr/lib").mkdir()
    (here / "usr/lib/one").write_text("back")
    containers.copy.follow()
    containers.assert_equal()


def test_no_whiteout_is_ever_made_by_hand(tmp_path: Path, containers: Containers) -> None:
    (containers.here / "only-here").write_text("x")
    containers.copy.follow()
    (containers.here / "etc/app/one").unlink()
    os.mknod(tmp_path / "here/upper/nothing below", stat.S_IFCHR, 0)
    containers.copy.follow()
    assert not (containers.there / "etc/app/one").exists()
    assert not os.path.lexists(tmp_path / "there/upper/nothing below")


def test_a_moved_folder_keeps_what_is_in_it(containers: Containers) -> None:
    """Its own folders are opaque wherever they lie beside the image's: that must not empty them again."""
    here = containers.here
    (here / "etc/own/inner").mkdir(parents=True)
    (here / "etc/own/inner/file").write_text("mine")
    containers.copy.follow()
    os.rename(here / "etc/own", here / "usr/own")
    containers.copy.follow()
    containers.assert_equal()
    os.chmod(here / "usr/own/inner", 0o700)
    containers.copy.follow()
    containers.assert_equal()


def test_a_folder_in_the_place_of_the_images_own_can_be_moved(containers: Containers) -> None:
    here = containers.here
    shutil.rmtree(here / "var")
    (here / "var/inner").mkdir(parents=True, mode=0o711)
    (here / "var/inner/log").write_text("log")
    containers.copy.follow()
    os.rename(here / "var", here / "moved")
    containers.copy.follow()
    containers.assert_equal()
    with (here / "moved/inner/log").open("a") as file:
        file.write("more")
    containers.copy.follow()
    containers.assert_equal()


def test_a_folder_made_anew_around_what_stays(containers: Containers) -> None:
    """Between two passes the image's folder goes, another takes its place, and what was in it comes back."""
    here = containers.here
    (here / "etc/app/own").mkdir()
    (here / "etc/app/own/file").write_text("mine")
    containers.copy.follow()
    os.rename(here / "etc/app/own", here / "aside")
    shutil.rmtree(here / "etc/app")
    (here / "etc/app").mkdir()
    os.rename(here / "aside", here / "etc/app/own")
    containers.copy.follow()
    containers.assert_equal()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_container_does_both_show_the_same(containers: Containers, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        for _ in range(rng.randrange(1, 12)):
            do_something(containers.here, rng)
        containers.copy.follow()
        containers.assert_equal()


def do_something(root: Path, rng: random.Random) -> None:
    paths = sorted(root.rglob("*"))
    folders = [root, *(path for path in paths if path.is_dir() and not path.is_symlink())]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    fresh = rng.choice(folders) / rng.choice(("one", "two", "app", "lib", "x", "y"))
    match rng.randrange(7):
        case 0 if not os.path.lexists(fresh):
            fresh.mkdir()
        case 1 if files:
            rng.choice(files).write_text(str(rng.random()))
        case 2 if not os.path.lexists(fresh):
            fresh.write_text(str(rng.random()))
        case 3 if files:
            rng.choice(files).unlink()
        case 4 if len(folders) > 4:
            shutil.rmtree(rng.choice(folders[1:]))
        case 5 if paths and not os.path.lexists(fresh):
            with contextlib.suppress(OSError):  # into itself; or an image's folder, which an overlay does not rename
                os.rename(rng.choice(paths), fresh)
        case 6 if files and not os.path.lexists(fresh):
            os.link(rng.choice(files), fresh)
