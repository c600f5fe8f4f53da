"""OCI image layouts by umoci: begun empty, one layer added at a time, settings last."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from whimbrel.workloads.commands import run
from whimbrel.workloads.recipe import Recipe

EPOCH = "2000-01-01T00:00:00Z"
STAGE_TAG = "stage"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def begin(layout: Path) -> None:
    run("umoci", "init", "--layout", str(layout))
    run("umoci", "new", "--image", f"{layout}:{STAGE_TAG}")


def copy(layout: Path, target: Path) -> None:
    """Blobs never change once written, so both layouts may hold the same files."""
    shutil.copytree(layout, target, ignore=shutil.ignore_patterns("blobs"))
    shutil.copytree(layout / "blobs", target / "blobs", copy_function=os.link)


def add_layer(layout: Path, content: Path, what: str) -> None:
    history = (f"--history.created={EPOCH}", f"--history.created_by={what}")
    run("umoci", "insert", "--image", f"{layout}:{STAGE_TAG}", *history, str(content), "/")


def settle(layout: Path, recipe: Recipe) -> None:
    """Write the settings, give the image its name as tag, and drop what the steps in between left behind."""
    settings = [f"--config.cmd={word}" for word in recipe.command]
    settings += [f"--config.env={PATH}", *(f"--config.env={name}={value}" for name, value in recipe.env.items())]
    settings += [f"--config.exposedports={port}" for port in recipe.ports]
    settings += [f"--config.workingdir={recipe.workdir}", f"--created={EPOCH}"]
    image = f"{layout}:{STAGE_TAG}"
    run("umoci", "config", "--image", image, "--tag", recipe.name, "--no-history", *settings)
    run("umoci", "rm", "--image", image)
    run("umoci", "gc", "--layout", str(layout))
