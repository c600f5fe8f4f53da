"""Volumes on one node: made, begun with what the image has, kept, found again, and gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from whimbrel.model.errors import BadInput, Conflict
from whimbrel.model.volume import Volume, parse_volume, parse_volumes
from whimbrel.storage.layer import unmount
from whimbrel.storage.volumes import VolumeStore

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for owners and mounts")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    (root / "var/lib/data/sub").mkdir(parents=True)
    (root / "var/lib/data/sub/seed").write_text("from the image")
    os.chown(root / "var/lib/data", 70, 70)
    os.chmod(root / "var/lib/data", 0o700)
    (root / "file").write_text("a file")
    (root / "link").symlink_to("var/lib")
    return root


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VolumeStore]:
    store = VolumeStore(tmp_path / "volumes")
    yield store
    for folder in store.root.glob("*/*/data"):
        unmount(folder)


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("data:/var/lib/data", Volume("data", "/var/lib/data")),
        ("a.b_c-1:/x:2GiB", Volume("a.b_c-1", "/x", 2 << 30)),
        ("d:/x:16MiB", Volume("d", "/x", 16 << 20)),
    ],
)
def test_what_is_written_is_meant(text: str, volume: Volume) -> None:
    assert parse_volume(text) == volume


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["/srv/data:/data"], "names a folder of the host, which cannot move"),
        (["./data:/data"], "names a folder of the host"),
        (["~/data:/data"], "names a folder of the host"),
        (["data"], "write NAME:/path"),
        (["Data:/x"], "write NAME:/path"),
        (["data:relative"], "is not a plain absolute path"),
        (["data:/"], "is not a plain absolute path"),
        (["data:/a/../b"], "is not a plain absolute path"),
        (["data:/a/"], "is not a plain absolute path"),
        (["data:"], "is not a plain absolute path"),
        (["data:/proc"], "is the kernel's own"),
        (["data:/dev/shm"], "is the kernel's own"),
        (["data:/x:1MiB"], "the least is 16MiB"),
        (["data:/x:much"], "is not a size"),
        (["data:/x", "data:/y"], "named twice"),
        (["a:/x", "b:/x/y"], "inside of each other"),
        (["a:/x", "b:/x"], "inside of each other"),
    ],
)
def test_what_no_volume_can_be_is_named(texts: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        parse_volumes(texts)
    assert "\n" not in str(caught.value)


@needs_root
def test_a_fresh_volume_begins_with_what_the_image_has(store: VolumeStore, image: Path) -> None:
    store.attach("svc", parse_volumes(["data:/var/lib/data", "more:/nowhere/yet"]), image)
    data = store.data("svc", "data")
    assert (data / "sub/seed").read_text() == "from the image"
    assert (data.stat().st_uid, data.stat().st_mode & 0o7777) == (70, 0o700)
    assert list(store.data("svc", "more").iterdir()) == []


@needs_root
@pytest.mark.parametrize("path", ["/file", "/link", "/link/data", "/file/below"])
def test_a_path_that_is_no_folder_of_the_image_is_refused(store: VolumeStore, image: Path, path: str) -> None:
    with pytest.raises(BadInput, match="a file or a symbolic link on the way"):
        store.attach("svc", parse_volumes([f"data:{path}"]), image)
    assert store.all() == []


@needs_root
def test_a_kept_volume_is_found_again_as_it_was(store: VolumeStore, image: Path) -> None:
    volumes = parse_volumes(["data:/var/lib/data"])
    store.attach("svc", volumes, image)
    store.in_use("svc")
    (store.data("svc", "data") / "row").write_text("1")
    (store.data("svc", "data") / "sub/seed").unlink()
    store.keep("svc")
    store.remove_unkept("svc")
    assert [volume.name for volume in store.all()] == ["data"]
    store.attach("svc", volumes, image)
    assert (store.data("svc", "data") / "row").read_text() == "1"
    assert not (store.data("svc", "data") / "sub/seed").exists(), "the image has no say any more"
    store.remove_unkept("svc")  # the service did not come to run
    assert (store.data("svc", "data") / "row").read_text() == "1"
    store.attach("svc", volumes, image)
    store.in_use("svc")
    store.remove_unkept("svc")
    assert list(store.root.iterdir()) == []


@needs_root
def test_a_service_that_moves_here_never_meets_a_kept_volume(store: VolumeStore, image: Path) -> None:
    volumes = parse_volumes(["data:/var/lib/data"])
    store.attach("svc", volumes, image)
    store.keep("svc")
    with pytest.raises(Conflict, match="whimbrel volume rm svc/data"):
        store.prepare("svc", volumes)
    store.remove_unkept("svc")  # the undo of that
    assert len(store.all()) == 1
    store.remove("svc", "data")
    store.prepare("svc", volumes)
    assert list(store.data("svc", "data").iterdir()) == [], "its files are on their way"
    with pytest.raises(BadInput, match="no volume svc/other here"):
        store.remove("svc", "other")


@needs_root
@pytest.mark.real
def test_a_fixed_size_holds_back_and_survives(store: VolumeStore, image: Path) -> None:
    volumes = parse_volumes(["data:/var/lib/data:24MiB"])
    store.attach("svc", volumes, image)
    data = store.data("svc", "data")
    assert os.path.ismount(data)
    assert [path.name for path in data.iterdir()] == ["sub"], "no lost+found: programs want an empty folder"
    assert (data.stat().st_uid, (data / "sub/seed").read_text()) == (70, "from the image")
    with pytest.raises(OSError, match="No space left"):
        (data / "big").write_bytes(bytes(32 << 20))
    (data / "big").unlink()
    (data / "row").write_text("1")
    store.keep("svc")
    store.remove_unkept("svc")
    assert not os.path.ismount(data)
    with pytest.raises(BadInput, match=f"was kept here with {24 << 20} bytes"):
        store.attach("svc", parse_volumes(["data:/var/lib/data"]), image)
    store.attach("svc", volumes, image)
    assert (data / "row").read_text() == "1"
    store.in_use("svc")
    store.remove_unkept("svc")
    assert not store.root.exists() or list(store.root.iterdir()) == []
    assert str(store.root) not in subprocess.run(["losetup", "--list"], capture_output=True, text=True).stdout


@needs_root
def test_what_a_crash_left_half_made_is_no_obstacle(store: VolumeStore, image: Path) -> None:
    (store.root / "svc/data/data").mkdir(parents=True)
    (store.root / "svc/data/data/half").touch()
    assert store.all() == []
    store.attach("svc", parse_volumes(["data:/var/lib/data"]), image)
    assert not (store.data("svc", "data") / "half").exists()
    (store.root / "svc/other/data").mkdir(parents=True)
    store.remove_unkept("svc")
    assert list(store.root.iterdir()) == []
