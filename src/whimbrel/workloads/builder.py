"""Builds a recipe's image, cached by content.

    <cache>/<name>/            OCI layout; the image's tag is its name
    <cache>/<name>.client/     files for its client
    <cache>/<name>.key         what both were made of
    <cache>/stages/<key>/      layout, root folder and client files up to one layer, for every image that begins so

A stage's key covers its layer, the files and scripts of that, and all layers below it. Equal stages are the same
files on disk, and equal layers the same blobs in a node's store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from whimbrel.model.errors import Refused, WhimbrelError
from whimbrel.workloads import layers, layout, tree
from whimbrel.workloads.commands import run_inside
from whimbrel.workloads.packages import pinned
from whimbrel.workloads.recipe import Layer, Recipe

CACHE = Path("/var/cache/whimbrel/workloads")
Progress = Callable[[str], object]
BUILDER = ("builder.py", "commands.py", "layers.py", "layout.py", "packages.py", "tree.py")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A built image: its layout and tag as `umoci` names it, the same as `service run` takes it, and the folder
    with its client's files."""

    layout: Path
    tag: str
    client_dir: Path

    @property
    def umoci(self) -> str:
        return f"{self.layout}:{self.tag}"

    @property
    def reference(self) -> str:
        return f"oci:{self.umoci}"


def build(recipe: Recipe, cache: Path = CACHE, *, progress: Progress = print) -> Image:
    """Build the image unless the cache has what this recipe says; needs root, apt, pip and umoci.

    Raises Refused when it cannot be built, BadInput for a recipe that cannot be meant.
    """
    image = Image(layout=cache / recipe.name, tag=recipe.name, client_dir=cache / f"{recipe.name}.client")
    key = image_key(recipe)
    note = cache / f"{recipe.name}.key"
    if _is_there(image, note, key):
        return image
    if os.geteuid() != 0:
        raise Refused("building an image needs root: run it with sudo")
    (cache / "stages").mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_there(image, note, key):
            _build(recipe, image, cache, progress)
            note.write_text("\n".join([key, *stage_keys(recipe)]))
            _sweep(cache)
    return image


def stage_keys(recipe: Recipe) -> list[str]:
    """A key for each layer together with those below it."""
    folder = Path(__file__).parent
    summary = hashlib.sha256(platform.machine().encode())
    for name in BUILDER:
        summary.update((folder / name).read_bytes())
    keys = []
    for layer in recipe.layers:
        summary.update(_layer_key(layer, recipe))
        keys.append(summary.hexdigest()[:32])
    return keys


def image_key(recipe: Recipe) -> str:
    """Changes with everything that the image or its client's files are made of."""
    settings = (recipe.name, recipe.command, recipe.env, recipe.workdir, recipe.ports, recipe.check)
    return hashlib.sha256(msgspec.json.encode((stage_keys(recipe), settings), order="deterministic")).hexdigest()


def _layer_key(layer: Layer, recipe: Recipe) -> bytes:
    plain = msgspec.structs.replace(layer, what="", folder=Path())
    parts = [msgspec.json.encode(plain, order="deterministic", enc_hook=str)]
    parts += [(layer.folder / file).read_bytes() for file in sorted(layer.files)]
    parts += [pinned(name).encode() for name in (*layer.pip, *layer.tools, *layer.sources)]
    if layer.make:
        parts += [(layer.folder / layer.make).read_bytes(), msgspec.json.encode(recipe.options, order="deterministic")]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _is_there(image: Image, note: Path, key: str) -> bool:
    return image.layout.is_dir() and note.exists() and note.read_text().split("\n", 1)[0] == key


def _build(recipe: Recipe, image: Image, cache: Path, progress: Progress) -> None:
    below: Path | None = None
    for layer, key in zip(recipe.layers, stage_keys(recipe), strict=True):
        stage = cache / "stages" / key
        if not stage.is_dir():
            progress(f"{recipe.name}: {layer.what}")
            with _scratch(stage) as work:
                _make_stage(layer, recipe, below, work / "stage", work)
                (work / "stage").rename(stage)
        below = stage
    assert below is not None
    if recipe.check:
        with _scratch(image.layout) as work:
            tree.link_copy(below / "root", work / "root")
            for command in recipe.check:
                _check(work / "root", command, recipe)
    progress(f"{recipe.name}: packing")
    with _scratch(image.layout) as work:
        layout.copy(below / "layout", work / "layout")
        layout.settle(work / "layout", recipe)
        (cache / f"{recipe.name}.key").unlink(missing_ok=True)
        for fresh, place in ((work / "layout", image.layout), (work / "client", image.client_dir)):
            shutil.rmtree(place, ignore_errors=True)
            if not fresh.exists():
                tree.link_copy(below / "client", fresh)
            fresh.rename(place)


def _make_stage(layer: Layer, recipe: Recipe, below: Path | None, stage: Path, work: Path) -> None:
    stage.mkdir()
    empty = work / "empty"
    if below is None:
        tree.make_skeleton(stage / "root")
        (stage / "client").mkdir()
        layout.begin(stage / "layout")
        empty.mkdir()
    else:
        tree.link_copy(below / "root", stage / "root")
        tree.link_copy(below / "client", stage / "client")
        layout.copy(below / "layout", stage / "layout")
    layers.fill(layer, recipe, stage / "root", stage / "client", work)
    tree.difference(below / "root" if below else empty, stage / "root", work / "content")
    tree.normalise(work / "content")
    layout.add_layer(stage / "layout", work / "content", layer.what)


def _check(root: Path, command: tuple[str, ...], recipe: Recipe) -> None:
    try:
        run_inside(root, *command)
    except WhimbrelError as error:
        raise Refused(f"{recipe.folder / 'recipe.toml'}: check {' '.join(command)!r} failed: {error}") from error


@contextlib.contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """A folder beside the place where its content goes, gone afterwards. apt downloads as a user of its own, who has
    to reach it."""
    with tempfile.TemporaryDirectory(prefix=f".new-{beside.name[:12]}-", dir=beside.parent) as folder:
        work = Path(folder)
        work.chmod(0o755)
        yield work


def _sweep(cache: Path) -> None:
    """Remove stages that no image of the cache is made of any more, and what a killed builder left."""
    used = {line for note in cache.glob("*.key") for line in note.read_text().split("\n")[1:]}
    for stage in (cache / "stages").iterdir():
        if stage.name not in used:
            shutil.rmtree(stage, ignore_errors=True)
    for left in cache.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)
