"""The writable layer: mounted, changed, carried to another node, and gone without a trace."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from whimbrel.model.errors import Refused
from whimbrel.storage.layer import Layer
from whimbrel.storage.listing import Lister
from whimbrel.storage.treecopy import copy_folder

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    (root / "etc/app").mkdir(parents=True)
    (root / "dev").mkdir()
    (root / "dev/planted").write_text("hidden")
    (root / "etc/app/settings").write_text("1")
    (root / "etc/name").write_text("image")
    return root


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[tuple[Layer, Layer]]:
    pair = Layer(tmp_path / "here"), Layer(tmp_path / "there")
    try:
        yield pair
    finally:
        for layer in pair:
            layer.unmount()


def view(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if stat.S_ISREG(path.lstat().st_mode)
    }


def test_changes_of_every_kind_look_the_same_on_the_next_node(image: Path, layers: tuple[Layer, Layer]) -> None:
    here, there = layers
    here.mount(image)
    (here.rootfs / "etc/name").unlink()
    os.rename(here.rootfs / "etc/app/settings", here.rootfs / "etc/moved")
    (here.rootfs / "etc/app").rmdir()
    (here.rootfs / "etc/app").mkdir()  # opaque: nothing of the image's folder may show again
    (here.rootfs / "etc/app/fresh").write_text("2")
    (here.rootfs / "data").mkdir(mode=0o700)
    (here.shm / "segment").write_text("shared")
    there.create()
    there.mount_shm()
    copy_folder(here.upper, there.upper)
    copy_folder(here.shm, there.shm)
    there.mount(image)
    assert view(there.rootfs) == view(here.rootfs) == {"etc/moved": "1", "etc/app/fresh": "2"}
    assert view(there.shm) == {"segment": "shared"}
    assert (there.rootfs / "data").stat().st_mode & 0o777 == 0o700
    assert view(image) == {"dev/planted": "hidden", "etc/app/settings": "1", "etc/name": "image"}


def test_device_nodes_are_each_nodes_own(image: Path, layers: tuple[Layer, Layer]) -> None:
    here, _ = layers
    here.mount(image)
    null = (here.rootfs / "dev/null").stat()
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert null.st_mode & 0o777 == 0o666
    assert not (here.rootfs / "dev/planted").exists()
    listed = Lister(here.upper).look().after
    assert "dev/null" not in listed
    assert "dev/fd" in listed


def test_mount_and_remove_can_be_repeated(image: Path, layers: tuple[Layer, Layer]) -> None:
    here, _ = layers
    here.mount(image)
    (here.rootfs / "kept").write_text("1")
    here.mount(image)
    here.unmount()
    here.unmount()
    here.mount(image)
    assert (here.rootfs / "kept").read_text() == "1"
    mounted = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(here.rootfs) in line]
    assert len(mounted) == 1
    here.remove()
    here.remove()
    assert list(here.rootfs.parent.iterdir()) == []
    assert str(here.rootfs) not in Path("/proc/self/mountinfo").read_text()


def test_path_that_overlay_cannot_take_is_refused(tmp_path: Path, image: Path) -> None:
    layer = Layer(tmp_path / "a:b")
    (tmp_path / "a:b").mkdir()
    try:
        with pytest.raises(Refused, match="without ':'"):
            layer.mount(image)
    finally:
        layer.remove()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
