"""Images are unpacked once, whole and inside their root, or not at all."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from oci_maker import file, folder, hard_link, link, make_layout, special, tar

from whimbrel.model.errors import BadInput, StepFailed
from whimbrel.storage import prescan
from whimbrel.storage.images import NODES_OWN, ImageStore
from whimbrel.storage.treecopy import copy_folder

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to keep the owners of an image's files"),
]

CONFIG = {
    "Entrypoint": ["/bin/run"],
    "Cmd": ["--fast"],
    "Env": ["A=1"],
    "WorkingDir": "/srv",
    "User": "svc",
}
PASSWD = file("etc/passwd", b"root:x:0:0::/:/bin/sh\nsvc:x:1000:1001::/:/bin/sh\n")
BASE = tar(folder("etc"), PASSWD, file("bin/run", b"#!/bin/sh\n"), file("old", b"old"), link("bin/go", "run"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def left_behind(store: ImageStore) -> list[str]:
    if not store.root.exists():
        return []
    return [entry.name for entry in store.root.iterdir() if not entry.name.startswith(".lock-")]


def test_layout_is_unpacked_with_its_configuration(tmp_path: Path, store: ImageStore) -> None:
    upper = tar(file("new", b"new", uid=1000, mode=0o4750), file(".wh.old", b""))
    make_layout(tmp_path / "oci", BASE, upper, config=CONFIG)
    image = store.ensure(f"oci:{tmp_path}/oci:v1")
    assert image.argv == ("/bin/run", "--fast")
    assert image.entrypoint == ("/bin/run",)
    assert "A=1" in image.env
    assert (image.cwd, image.uid, image.gid) == ("/srv", 1000, 1001)
    assert (image.rootfs / "new").read_bytes() == b"new"
    assert (image.rootfs / "new").stat().st_mode & 0o7777 == 0o4750
    assert (image.rootfs / "new").stat().st_uid == 1000
    assert not (image.rootfs / "old").exists()
    assert store.has(image.digest)
    assert store.ensure(f"oci:{tmp_path}/oci") == image  # the only image needs no tag


def test_second_time_nothing_is_read(tmp_path: Path, store: ImageStore) -> None:
    layout = make_layout(tmp_path / "oci", BASE)
    image = store.ensure(f"oci:{layout}:v1")
    for blob in (layout / "blobs/sha256").iterdir():
        blob.write_bytes(b"gone bad")
    assert store.ensure(f"oci:{layout}:v1") == image


def test_archive_is_unpacked(tmp_path: Path, store: ImageStore) -> None:
    layout = make_layout(tmp_path / "oci", BASE, config=CONFIG)
    subprocess.run(["tar", "-C", layout, "-cf", tmp_path / "a.tar", "."], check=True)
    image = store.ensure(f"oci-archive:{tmp_path}/a.tar")
    assert image == store.ensure(f"oci:{layout}:v1")
    assert (image.rootfs / "bin/run").exists()


def test_folder_is_copied_and_follows_its_changes(tmp_path: Path, store: ImageStore) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/sh").write_text("1")
    first = store.ensure(f"rootfs:{root}")
    assert first.argv == ()
    assert store.ensure(f"rootfs:{root}") == first
    (root / "bin/sh").write_text("22")
    second = store.ensure(f"rootfs:{root}")
    assert second.digest != first.digest
    assert (first.rootfs / "bin/sh").read_text() == "1"


def test_two_at_once_unpack_once(tmp_path: Path, store: ImageStore) -> None:
    make_layout(tmp_path / "oci", BASE)
    found = []
    threads = [threading.Thread(target=lambda: found.append(store.ensure(f"oci:{tmp_path}/oci"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert left_behind(store) == [found[0].digest.removeprefix("sha256:")]


def test_remains_of_a_killed_process_are_cleared(tmp_path: Path, store: ImageStore) -> None:
    layout = make_layout(tmp_path / "oci", BASE)
    digest = store.ensure(f"oci:{layout}").digest.removeprefix("sha256:")
    (store.root / digest).rename(store.root / f".new-{digest}")
    (store.root / f".new-{digest}/half").write_text("half")
    image = store.ensure(f"oci:{layout}")
    assert not (image.rootfs.parent / "half").exists()
    assert left_behind(store) == [digest]


HOSTILE = {
    "climbs": [file("../../escaped")],
    "climbs inside": [file("a/../../escaped")],
    "absolute": [file("/escaped")],
    "through an absolute link": [link("out", "{outside}"), file("out/escaped")],
    "through a climbing link": [folder("a"), link("a/out", "../../.."), file("a/out/escaped")],
    "through two links": [link("one", "two"), link("two", "{outside}"), file("one/escaped")],
    "a link below a link": [
        folder("usr/lib"),
        link("lib", "usr/lib"),
        link("lib/out", "/"),
        file("usr/lib/out/escaped"),
    ],
    "round and round": [link("a", "b"), link("b", "a"), file("a/escaped")],
    "the root itself": [link("./", "{outside}"), file("escaped")],
    "hard link to outside": [hard_link("mine", "../../../outside/precious")],
    "hard link to an absolute path": [hard_link("mine", "{outside}/precious")],
    "hard link through a link": [link("out", "{outside}"), hard_link("mine", "out/precious")],
    "block device": [special("disk", tarfile.BLKTYPE, devmajor=254, devminor=0)],
    "character device": [special("mem", tarfile.CHRTYPE, devmajor=1, devminor=1)],
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("split", [False, True], ids=["one layer", "a layer each"])
def test_layer_that_leaves_its_root_is_refused(tmp_path: Path, store: ImageStore, name: str, split: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    members = []
    for member, content in HOSTILE[name]:
        named = copy.copy(member)
        named.linkname = member.linkname.format(outside=outside)
        members.append((named, content))
    layers = [tar(member) for member in members] if split else [tar(*members)]
    make_layout(tmp_path / "oci", BASE, *layers)
    with pytest.raises(BadInput) as caught:
        store.ensure(f"oci:{tmp_path}/oci")
    assert "\n" not in str(caught.value)
    assert "is refused: member" in str(caught.value)
    assert left_behind(store) == []
    assert [entry.name for entry in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "precious"
    assert (outside / "precious").stat().st_nlink == 1
    assert not list(tmp_path.rglob("escaped"))
    assert not Path("/escaped").exists()


def test_links_that_stay_inside_are_no_attack(tmp_path: Path, store: ImageStore) -> None:
    layer = tar(folder("usr/lib"), link("lib", "usr/lib"), file("lib/a", b"a"), link("mtab", "/proc/mounts"),
                hard_link("usr/lib/b", "usr/lib/a"), link("far", "/"), link("usr/up", "../usr/lib/../lib"),
                file("usr/up/c", b"c"))  # fmt: skip
    replaced = tar(folder("far"), file("far/file", b"in"))
    image = store.ensure(f"oci:{make_layout(tmp_path / 'oci', layer, replaced)}")
    assert (image.rootfs / "usr/lib/b").read_bytes() == b"a"
    assert (image.rootfs / "far/file").read_bytes() == b"in"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda layout: (layout / "oci-layout").unlink(), "not an OCI image layout"),
        (lambda layout: (layout / "index.json").write_text("{"), "index.json"),
        (lambda layout: (layout / "index.json").write_text('{"manifests": []}'), "no image"),
        (lambda layout: (layout / "index.json").write_text('{"manifests": [{"digest": "md5:1"}]}'), "digest"),
        (lambda layout: [blob.unlink() for blob in (layout / "blobs/sha256").iterdir()], "cannot be read"),
        (lambda layout: _damage_largest(layout), "digest"),
    ],
    ids=["no oci-layout", "index cut", "index empty", "other digest", "blobs missing", "blob damaged"],
)
def test_broken_layout_is_refused(tmp_path: Path, store: ImageStore, break_it: object, words: str) -> None:
    layout = make_layout(tmp_path / "oci", BASE)
    break_it(layout)  # type: ignore[operator]
    with pytest.raises(BadInput, match=words) as caught:
        store.ensure(f"oci:{layout}")
    assert "\n" not in str(caught.value)
    assert left_behind(store) == []


def _damage_largest(layout: Path) -> None:
    blob = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0xFF
    blob.write_bytes(content)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("echo", "write oci:PATH"),
        ("docker:busybox", "write oci:PATH"),
        ("oci:", "write oci:PATH"),
        ("oci:relative/path", "absolute"),
        ("oci:{tmp}/nowhere", "no folder"),
        ("oci:{tmp}/oci:v9", "no tag 'v9'; its tags: v1, v2"),
        ("oci:{tmp}/oci", "holds 2 images"),
        ("oci-archive:{tmp}/nowhere.tar", "no file"),
        ("oci-archive:{tmp}/oci/index.json", "cut short; copy it again"),
        ("rootfs:{tmp}/nowhere", "no folder"),
    ],
)
def test_reference_that_means_nothing_is_refused(tmp_path: Path, store: ImageStore, reference: str, words: str) -> None:
    make_layout(tmp_path / "oci", BASE)
    make_layout(tmp_path / "oci", tar(file("other")), tag="v2")
    with pytest.raises(BadInput, match=words):
        store.ensure(reference.format(tmp=tmp_path))
    assert left_behind(store) == []


def test_layer_that_is_no_archive_is_refused(tmp_path: Path, store: ImageStore) -> None:
    with pytest.raises(BadInput, match="no readable tar"):
        store.ensure(f"oci:{make_layout(tmp_path / 'oci', b'not a tar at all' * 100)}")
    assert left_behind(store) == []


def test_huge_image_is_refused_before_it_is_unpacked(
    tmp_path: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prescan, "MAX_UNPACKED_BYTES", 1 << 20)
    bomb = tar(file("zeros", bytes(2 << 20)))  # two kilobytes as a blob
    with pytest.raises(BadInput, match="too large"):
        store.ensure(f"oci:{make_layout(tmp_path / 'oci', bomb)}")
    assert left_behind(store) == []


def send(store: ImageStore, digest: str, other: ImageStore) -> bool:
    stored = store.stored(digest)
    return other.take(digest, stored.tree, lambda folder: copy_folder(stored.folder, folder, without=NODES_OWN))


def test_image_crosses_to_another_node(tmp_path: Path, store: ImageStore) -> None:
    layer = tar(file("bin/run", b"#!", uid=7), hard_link("bin/again", "bin/run"), link("bin/go", "run"))
    planted = tar(file("dev/planted", b"hidden in every container"))
    image = store.ensure(f"oci:{make_layout(tmp_path / 'oci', BASE, layer, planted, config=CONFIG)}")
    other = ImageStore(tmp_path / "other")
    assert send(store, image.digest, other)
    arrived = other.get(image.digest)
    assert (arrived.argv, arrived.uid, arrived.env) == (image.argv, image.uid, image.env)
    ran = (arrived.rootfs / "bin/run").stat()
    assert (ran.st_uid, ran.st_nlink, ran.st_mode) == (7, 2, (image.rootfs / "bin/run").stat().st_mode)
    assert ran.st_mtime_ns == (image.rootfs / "bin/run").stat().st_mtime_ns
    assert not (arrived.rootfs / "dev/planted").exists()
    assert other.stored(image.digest).tree == store.stored(image.digest).tree
    assert not send(store, image.digest, other), "it is there"
    third = ImageStore(tmp_path / "third")
    assert send(other, image.digest, third), "from there it can go on"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rootfs: (rootfs / "old").write_text("new"),
        lambda rootfs: os.chmod(rootfs / "bin/run", 0o4755),
        lambda rootfs: (rootfs / "more").touch(),
        lambda rootfs: (rootfs / "old").unlink(),
        lambda rootfs: os.setxattr(rootfs / "bin/run", "user.x", b"1"),
    ],
    ids=["contents", "mode", "one more", "one less", "attribute"],
)
def test_an_image_that_was_changed_does_not_spread(
    tmp_path: Path, store: ImageStore, spoil: Callable[[Path], object]
) -> None:
    image = store.ensure(f"oci:{make_layout(tmp_path / 'oci', BASE)}")
    spoil(image.rootfs)
    other = ImageStore(tmp_path / "other")
    with pytest.raises(StepFailed, match="is not what it was when it was unpacked") as caught:
        send(store, image.digest, other)
    assert "\n" not in str(caught.value)
    assert left_behind(other) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: shutil.rmtree(folder / "rootfs"),
        lambda folder: (folder / "image.json").unlink(),
        lambda folder: (folder / "image.json").write_text("["),
        lambda folder: (shutil.rmtree(folder / "rootfs"), (folder / "rootfs").symlink_to("/")),
        lambda folder: ((folder / "image.json").unlink(), (folder / "image.json").symlink_to("/etc/hostname")),
    ],
)
def test_image_that_did_not_arrive_whole_is_refused(
    tmp_path: Path, store: ImageStore, spoil: Callable[[Path], object]
) -> None:
    image = store.ensure(f"oci:{make_layout(tmp_path / 'oci', BASE)}")
    stored = store.stored(image.digest)
    spoil(stored.folder)
    other = ImageStore(tmp_path / "other")
    with pytest.raises(BadInput) as caught:
        other.take(image.digest, stored.tree, lambda folder: copy_folder(stored.folder, folder))
    assert "\n" not in str(caught.value)
    assert left_behind(other) == []


def test_layers_packed_with_zstd_are_unpacked(tmp_path: Path, store: ImageStore) -> None:
    gzipped = store.ensure(f"oci:{make_layout(tmp_path / 'gzip', BASE, BASE, config=CONFIG)}")
    upper = tar(file("new", b"new"), file(".wh.old", b""))
    layout = make_layout(tmp_path / "zstd", BASE, BASE, upper, config=CONFIG, packed="zstd")
    image = store.ensure(f"oci:{layout}")
    assert image.argv == gzipped.argv
    assert (image.rootfs / "bin/run").read_bytes() == (gzipped.rootfs / "bin/run").read_bytes()
    assert (image.rootfs / "new").read_bytes() == b"new"
    assert not (image.rootfs / "old").exists()
    assert sorted(path.name for path in image.rootfs.parent.iterdir()) == ["image.json", "rootfs"]


def test_a_layer_that_is_no_zstd_is_refused(tmp_path: Path, store: ImageStore) -> None:
    layout = make_layout(tmp_path / "oci", BASE, layer_type="application/vnd.oci.image.layer.v1.tar+zstd")
    with pytest.raises(BadInput, match="no readable zstd"):
        store.ensure(f"oci:{layout}")
    assert left_behind(store) == []


def test_a_half_image_of_a_killed_process_is_forgotten(tmp_path: Path, store: ImageStore) -> None:
    digest = store.ensure(f"oci:{make_layout(tmp_path / 'oci', BASE)}").digest
    other = ImageStore(tmp_path / "other")
    (other.root / f".new-{digest.removeprefix('sha256:')}/rootfs").mkdir(parents=True)
    other.forget_half(digest)
    assert left_behind(other) == []
    store.forget_half(digest)
    assert store.has(digest), "a whole one stays"
