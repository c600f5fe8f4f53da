"""Unpacked images of one node, by digest.

    <root>/<digest>/rootfs      the image's files, owned as the image says; never changed once there
    <root>/<digest>/image.json  how its process starts

`skopeo` reads the image and checks every digest, `prescan` refuses hostile layers, `umoci` unpacks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from whimbrel.model.errors import BadInput, StepFailed, WhimbrelError
from whimbrel.storage.listing import allocated_bytes
from whimbrel.storage.oci import find_image, parse_reference
from whimbrel.storage.treedigest import is_digest, tree_digest
from whimbrel.storage.unpack import Start, copy_tree, digest_of_tree, unpack

ROOTFS = "rootfs"
NODES_OWN = "rootfs/dev"  # every node makes its own: what an image has there is hidden, and does not cross
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


class _ImageFile(msgspec.Struct, frozen=True, kw_only=True):
    """image.json. `tree` vouches for the unpacked files (see `treedigest`) when they cross to another node."""

    start: Start
    tree: str
    reference: str = ""
    size_bytes: int = 0


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """`folder` holds image.json and rootfs; `size_bytes` is what they take on disk."""

    digest: str
    folder: Path
    tree: str
    reference: str
    size_bytes: int


def portable(image: Image) -> dict[str, Any]:
    """All but its place on this node, for another node to make `placed` of."""
    about: dict[str, Any] = msgspec.to_builtins(image, enc_hook=str)
    del about["rootfs"]
    return about


def placed(about: Any, rootfs: Path) -> Image:
    """What `portable` told, with its root file system at `rootfs`. Raises BadInput for something else."""
    try:
        return msgspec.convert({**about, "rootfs": str(rootfs)}, Image, dec_hook=lambda _, text: Path(text))
    except (msgspec.ValidationError, TypeError) as error:
        raise BadInput(f"what was told of an image is not valid: {error!r}") from error


class ImageStore:
    """All methods block; `ensure` may take seconds. Safe for several callers and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, digest: str) -> bool:
        return (self._folder(digest) / "image.json").exists()

    def get(self, digest: str) -> Image:
        """Raises BadInput for a digest that is not here."""
        file = self._read(digest)
        return Image(digest=digest, rootfs=self._folder(digest) / ROOTFS, **msgspec.structs.asdict(file.start))

    def stored(self, digest: str) -> StoredImage:
        """What another node needs to take it. Raises BadInput for a digest that is not here."""
        file = self._read(digest)
        return StoredImage(
            digest=digest,
            folder=self._folder(digest),
            tree=file.tree,
            reference=file.reference,
            size_bytes=file.size_bytes,
        )

    def all(self) -> list[StoredImage]:
        names = [path.name for path in sorted(self.root.glob("*")) if not path.name.startswith(".")]
        return [self.stored(f"sha256:{name}") for name in names if self.has(f"sha256:{name}")]

    def _read(self, digest: str) -> _ImageFile:
        try:
            return _read_config(self._folder(digest))
        except FileNotFoundError as error:
            raise BadInput(f"image {digest} is not on this node: run the service by its reference") from error
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            folder = self._folder(digest)
            raise BadInput(
                f"{folder}/image.json is not of this version: remove {folder} and run the service again"
            ) from error

    def ensure(self, reference: str) -> Image:
        """Unpack the image unless it is here; ``oci:PATH[:TAG]``, ``oci-archive:PATH[:TAG]``, ``rootfs:DIR``.

        Raises BadInput for a reference or image that cannot be used, Refused when a program is missing.
        Nothing stays behind after an error.
        """
        digest, fill = self._found(reference)

        def make(staging: Path) -> _ImageFile:
            start = fill(staging)
            tree = tree_digest(staging / ROOTFS, without="dev")
            return _ImageFile(start=start, tree=tree, reference=reference, size_bytes=allocated_bytes(staging))

        return self._once(digest, make)

    def can_make(self, reference: str, digest: str) -> bool:
        """Whether `reference` names this very image here, so that `ensure` would give it."""
        try:
            return self._found(reference)[0] == digest
        except WhimbrelError:
            return False

    def _found(self, reference: str) -> tuple[str, Callable[[Path], Start]]:
        kind, path, tag = parse_reference(reference)
        if kind == "rootfs":
            return digest_of_tree(path), lambda staging: copy_tree(path, staging)
        found = find_image(kind, path, tag)
        return found.digest, lambda staging: unpack(found.source, reference, staging)

    def take(self, digest: str, tree: str, fill: Callable[[Path], None]) -> bool:
        """Take an image from another node: `fill` puts image.json and rootfs into a folder. False when it was here
        already (then `fill` is not called).

        Raises what `fill` raises, StepFailed when what it brought is not what `tree` vouches for; nothing stays then.
        """
        called = False

        def receive(staging: Path) -> _ImageFile:
            nonlocal called
            called = True
            fill(staging)
            rootfs = staging / ROOTFS
            if not rootfs.is_dir() or rootfs.is_symlink():
                raise BadInput(f"what arrived as image {digest} holds no root file system")
            try:
                file = _read_config(staging)
            except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
                raise BadInput(f"what arrived as image {digest} has no valid image.json: {error}") from error
            if tree_digest(rootfs, without="dev") != tree or file.tree != tree:
                raise StepFailed(
                    f"image {digest} is not what it was when it was unpacked: remove it on the node that sent it "
                    "(its files were changed), and run the service again by its reference"
                )
            return msgspec.structs.replace(file, size_bytes=allocated_bytes(staging))

        self._once(digest, receive)
        return called

    def forget_half(self, digest: str) -> None:
        """Remove what a process left that was killed while it took this image; waits for one that is still at it."""
        if self.root.exists():
            with self._lock(digest), self._staging(digest):
                return

    def sweep(self) -> None:
        """Remove what processes that were killed left half-done; call it when no other process uses the store."""
        for left in self.root.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)

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
        if not is_digest(digest):
            raise BadInput(f"{digest!r} is not an image digest")
        return self.root / digest.partition(":")[2]

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
