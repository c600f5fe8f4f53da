"""Images really built: small ones, out of the distribution's packages."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from whimbrel.model.errors import Refused
from whimbrel.workloads.builder import Image, build
from whimbrel.workloads.catalogue import find
from whimbrel.workloads.recipe import load_recipe

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="building needs root")]


def digest_of(image: Image) -> str:
    """The manifest's: it covers settings and layers."""
    (entry,) = json.loads((image.layout / "index.json").read_text())["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == image.tag
    return str(entry["digest"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def test_an_image_is_built_once_and_the_same_everywhere(cache: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    image = build(find("blank"), cache, progress=steps.append)
    assert len(steps) == 3
    assert image.reference == f"oci:{cache}/blank:blank"
    again = build(find("blank"), cache, progress=steps.append)
    assert (len(steps), again) == (3, image), "nothing is done twice"
    elsewhere = build(find("blank"), tmp_path / "other", progress=steps.append)
    assert digest_of(elsewhere) == digest_of(image)


def test_the_image_says_how_it_starts(cache: Path, tmp_path: Path) -> None:
    image = build(find("blank"), cache)
    subprocess.run(["umoci", "unpack", "--image", image.umoci, tmp_path / "bundle"], check=True, capture_output=True)
    process = json.loads((tmp_path / "bundle/config.json").read_text())["process"]
    assert process["args"] == ["/usr/bin/busybox", "sh", "/srv/init.sh"]
    assert "PORT=7000" in process["env"]
    root = tmp_path / "bundle/rootfs"
    said = subprocess.run(["chroot", root, "/usr/bin/busybox", "echo", "it runs"], capture_output=True, text=True)
    assert said.stdout == "it runs\n"
    inside = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
    assert "usr/share/doc/busybox-static/copyright" not in inside
    assert inside == {"etc/group", "etc/hosts", "etc/nsswitch.conf", "etc/passwd", "srv/init.sh", "usr/bin/busybox"}


def test_variants_share_what_is_equal(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blank-8000"
    folder.mkdir()
    (folder / "recipe.toml").write_text(
        'summary = "x"\nextends = "blank"\nports = ["8000/tcp"]\nenv = { PORT = "8000" }\n'
    )
    first = build(find("blank"), cache)
    variant = build(load_recipe(folder, find("blank").folder.parent), cache)
    assert digest_of(variant) != digest_of(first)
    layers = [{path.name: path.stat().st_ino for path in (image.layout / "blobs/sha256").iterdir()
               if path.stat().st_size > 100_000} for image in (first, variant)]  # fmt: skip
    assert layers[0] == layers[1] != {}, "the same files on disk"


def test_a_build_that_fails_leaves_the_image_that_was_there(cache: Path) -> None:
    good = build(find("blank"), cache)
    before = digest_of(good)
    wrong = msgspec.structs.replace(find("blank"), check=(("/usr/bin/busybox", "false"),))
    with pytest.raises(Refused, match=r"check '/usr/bin/busybox false' failed"):
        build(wrong, cache)
    assert digest_of(good) == before
    assert not list(cache.glob(".new-*"))
    assert not list((cache / "stages").glob(".new-*"))


@pytest.mark.thorough
def test_a_package_that_does_not_exist_is_one_line(cache: Path) -> None:
    blank = find("blank")
    layer = msgspec.structs.replace(blank.layers[0], apt=("no-such-package-anywhere",))
    with pytest.raises(Refused, match="no-such-package-anywhere"):
        build(msgspec.structs.replace(blank, name="wrong", layers=(layer,)), cache)


def test_a_path_that_the_packages_lack_is_one_line(cache: Path) -> None:
    blank = find("blank")
    layer = msgspec.structs.replace(blank.layers[0], keep=("usr/bin/no-such-program",))
    with pytest.raises(Refused, match="nothing at 'usr/bin/no-such-program'"):
        build(msgspec.structs.replace(blank, name="wrong", layers=(layer,)), cache)
