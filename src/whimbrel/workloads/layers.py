"""One layer's content put into a root folder: packages, wheels, what a script makes, files.

A `make` script runs with the Python that builds, in a folder of its own: its `tools` can be imported, its `sources`
are unpacked in ``sources/NAME``, the recipe's options are in ``options.json``. What it leaves in ``image/`` goes to
the same place in the image, and what it leaves in ``client/`` is for the client.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from whimbrel.model.errors import Refused
from whimbrel.workloads import packages, tree
from whimbrel.workloads.commands import run
from whimbrel.workloads.recipe import Layer, Recipe

SITE_PACKAGES = "usr/lib/python3/dist-packages"


def fill(layer: Layer, recipe: Recipe, root: Path, client: Path, work: Path) -> None:
    """Put the layer's content into `root`, and its files for the client into `client`. Raises Refused."""
    if layer.apt:
        unpacked = work / "unpacked"
        packages.unpack_debian(layer.apt, unpacked, work)
        tree.merge_usr(unpacked)
        tree.take(unpacked, root, layer.keep, layer.needless)
    elif layer.pip:
        wheels = work / "wheels"
        packages.install_python(layer.pip, wheels, work, for_python=python_of(root))
        tree.prune(wheels, layer.needless)
        _merge(wheels, root / SITE_PACKAGES)
    elif layer.make:
        _make(layer, recipe, root, client, work)
    for file, target in sorted(layer.files.items()):
        _put(layer.folder / file, root / target.lstrip("/"))
    tree.normalise(root)
    if layer.imports:
        tree.import_in(root, layer.imports)
        tree.normalise(root)


def python_of(root: Path) -> str:
    """Version of the tree's Python, like ``3.11``. Raises Refused when it has none."""
    link = root / "usr/bin/python3"
    if not link.is_symlink():
        raise Refused(f"building an image: pip needs a Python in the image: put 'python' first in base ({root.name})")
    return os.readlink(link).removeprefix("python")


def _make(layer: Layer, recipe: Recipe, root: Path, client: Path, work: Path) -> None:
    tools, place = work / "tools", work / "make"
    for folder in (tools, place / "image", place / "client"):
        folder.mkdir(parents=True)
    if layer.tools:
        packages.install_python(layer.tools, tools, work)
    packages.unpack_sources(layer.sources, place / "sources", work)
    (place / "options.json").write_text(json.dumps(recipe.options))
    env = {**os.environ, "PYTHONPATH": str(tools), "PYTHONDONTWRITEBYTECODE": "1"}
    run(sys.executable, str(layer.folder / layer.make), env=env, cwd=place)
    _merge(place / "image", root)
    _merge(place / "client", client)


def _merge(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            _put(path, target / path.relative_to(source))


def _put(path: Path, target: Path) -> None:
    """Never written in place: the file that was there may be another image's too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy2(path, target, follow_symlinks=False)
