"""Unpacked images of one node, by digest.

    <root>/<digest>/rootfs      the image's files, owned as the image says; never changed once there
    <root>/<digest>/image.json  how its process starts

`skopeo` reads the image and checks every digest, `prescan` refuses hostile layers, `umoci` unpacks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.storage.archive import apply
from whimbrel.storage.oci import find_image, parse_reference
from whimbrel.storage.prescan import prescan_layout

_LAYOUT_TAG = "whimbrel"
_IMAGE_FILE_MAX_BYTES = 1 << 20


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """`argv` is the entry point and the command; a service's own arguments follow `entrypoint` alone."""

    digest: str
    rootfs: Path
    argv: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


class _ImageFile(msgspec.Struct, frozen=True):
    """image.json: an Image without its place on this node."""

    argv: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def portable(image: Image) -> Any:
    """All but its place on this node, for another node to make `placed` of."""
    return {name: value for name, value in msgspec.structs.asdict(image).items() if name != "rootfs"}


def placed(about: Any, rootfs: Path) -> Image:
    """What `portable` told, with its root file system at `rootfs`. Raises BadInput for something else."""
    try:
        config = msgspec.convert({name: value for name, value in about.items() if name != "digest"}, _ImageFile)
        return Image(digest=str(about["digest"]), rootfs=rootfs, **msgspec.structs.asdict(config))
    except (msgspec.ValidationError, KeyError, AttributeError) as error:
        raise BadInput(f"what was told of an image is not valid: {error!r}") from error


class ImageStore:
    """All methods block; `ensure` may take seconds. Safe for several callers and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, digest: str) -> bool:
        return (self._folder(digest) / "image.json").exists()

    def get(self, digest: str) -> Image:
        """Raises BadInput for a digest that is not here."""
        folder = self._folder(digest)
        try:
            config = _read_config(folder)
        except FileNotFoundError as error:
            raise BadInput(f"image {digest} is not on this node: run the service by its reference") from error
        return Image(digest=digest, rootfs=folder / "rootfs", **msgspec.structs.asdict(config))

    def ensure(self, reference: str) -> Image:
        """Unpack the image unless it is here; ``oci:PATH[:TAG]``, ``oci-archive:PATH[:TAG]``, ``rootfs:DIR``.

        Raises BadInput for a reference or image that cannot be used, Refused when a program is missing.
        Nothing stays behind after an error.
        """
        kind, path, tag = parse_reference(reference)
        if kind == "rootfs":
            digest = digest_of_tree(path)
            return self._once(digest, lambda staging: _copy_tree(path, staging))
        found = find_image(kind, path, tag)
        return self._once(found.digest, lambda staging: _unpack(found.source, reference, staging))

    def export_tar(self, digest: str) -> list[str]:
        """Command whose standard output is a tar stream that `import_tar` takes."""
        self.get(digest)
        return [
            "tar", "--create", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=posix",
            "--exclude=rootfs/dev/*", "--directory", str(self._folder(digest)), "image.json", "rootfs",
        ]  # fmt: skip

    def import_tar(self, digest: str, stream: IO[bytes]) -> Image:
        """Take what `export_tar` of a peer gave, unless the image is here (then the stream is not read).

        Raises BadInput for a hostile or broken stream, of which nothing stays.
        """

        def receive(staging: Path) -> _ImageFile:
            apply(staging, stream)
            if not (staging / "rootfs").is_dir() or (staging / "rootfs").is_symlink():
                raise BadInput(f"what arrived as image {digest} holds no root file system")
            try:
                return _read_config(staging)
            except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
                raise BadInput(f"what arrived as image {digest} has no valid image.json: {error}") from error

        return self._once(digest, receive)

    def _once(self, digest: str, fill: Callable[[Path], _ImageFile]) -> Image:
        if not self.has(digest):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock(digest), self._staging(digest) as staging:
                if not self.has(digest):
                    config = fill(staging)
                    (staging / "image.json").write_bytes(msgspec.json.encode(config))
                    staging.rename(self._folder(digest))
        return self.get(digest)

    def _folder(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise BadInput(f"{digest!r} is not an image digest")
        return self.root / value

    @contextlib.contextmanager
    def _lock(self, digest: str) -> Iterator[None]:
        # the lock file stays: whoever waits for it must not end up with another file than the next comer
        with (self.root / f".lock-{digest[-64:]}").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _staging(self, digest: str) -> Iterator[Path]:
        """A folder to fill, gone afterwards unless renamed.

        With the lock held, one that exists was left behind by a process that was killed.
        """
        staging = self.root / f".new-{self._folder(digest).name}"
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(mode=0o700)
        try:
            yield staging
        finally:
            if staging.exists():
                shutil.rmtree(staging)


def _read_config(folder: Path) -> _ImageFile:
    file = os.open(folder / "image.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(file, "rb") as opened:
        return msgspec.json.decode(opened.read(_IMAGE_FILE_MAX_BYTES), type=_ImageFile)


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


def _copy_tree(source: Path, staging: Path) -> _ImageFile:
    run("cp", "--archive", "--reflink=auto", "--one-file-system", str(source), str(staging / "rootfs"))
    return _ImageFile()


def _unpack(source: str, reference: str, staging: Path) -> _ImageFile:
    layout = staging / "layout"
    try:
        run("skopeo", "copy", "--quiet", "--insecure-policy", source, f"oci:{layout}:{_LAYOUT_TAG}")
    except WhimbrelError as error:
        raise BadInput(f"image {reference} cannot be read: {error}") from error
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
    return _ImageFile(
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
