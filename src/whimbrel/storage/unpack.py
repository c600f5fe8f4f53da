"""Making an image's root file system out of what its reference names, with the programs that know how."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import msgspec

from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.storage.prescan import prescan_layout
from whimbrel.storage.zstd_layers import recode_layout

_LAYOUT_TAG = "whimbrel"


class Start(msgspec.Struct, frozen=True):
    """How an image's process starts."""

    argv: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def digest_of_tree(folder: Path) -> str:
    """Digest over names, kinds, owners, modes, sizes, times and link targets (contents are not read)."""
    summary = hashlib.sha256()
    for directory, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted(folders + files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            target = os.readlink(path) if os.path.islink(path) else ""
            size = status.st_size if not os.path.isdir(path) else 0
            facts = (os.path.relpath(path, folder), status.st_mode, status.st_uid, status.st_gid, size,
                     status.st_mtime_ns, target)  # fmt: skip
            summary.update(repr(facts).encode(errors="surrogateescape"))
    return f"sha256:{summary.hexdigest()}"


def _raise(error: OSError) -> None:
    raise BadInput(f"cannot read {error.filename}: {error.strerror}") from error


def copy_tree(source: Path, staging: Path) -> Start:
    run("cp", "--archive", "--reflink=auto", "--one-file-system", str(source), str(staging / "rootfs"))
    return Start()


def unpack(source: str, reference: str, staging: Path) -> Start:
    layout = staging / "layout"
    try:
        run("skopeo", "copy", "--quiet", "--insecure-policy", source, f"oci:{layout}:{_LAYOUT_TAG}")
    except WhimbrelError as error:
        raise BadInput(f"image {reference} cannot be read: {error}") from error
    recode_layout(layout, reference)
    labels = prescan_layout(layout, reference)
    try:
        run("umoci", "raw", "unpack", "--image", f"{layout}:{_LAYOUT_TAG}", str(staging / "rootfs"))
        run("umoci", "raw", "runtime-config", "--image", f"{layout}:{_LAYOUT_TAG}",
            "--rootfs", str(staging / "rootfs"), str(staging / "config.json"))  # fmt: skip
    except WhimbrelError as error:
        raise BadInput(f"image {reference} cannot be unpacked: {error}") from error
    process = msgspec.json.decode((staging / "config.json").read_bytes())["process"]
    (staging / "config.json").unlink()
    shutil.rmtree(layout)
    user = process["user"]
    return Start(
        argv=tuple(process.get("args") or ()),
        entrypoint=labels.entrypoint,
        env=tuple(process.get("env") or ()),
        cwd=process.get("cwd") or "/",
        uid=user["uid"],
        gid=user["gid"],
        groups=tuple(user.get("additionalGids") or ()),
    )


def run(*argv: str) -> None:
    """Run one program; raises WhimbrelError with its last line, Refused when it is not installed."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise Refused(f"{argv[0]} is not installed: run `whimbrel check`") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise WhimbrelError(f"{argv[0]}: {lines[-1][:400]}")
