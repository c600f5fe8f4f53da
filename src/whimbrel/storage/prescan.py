"""Read an image's layers before anything is unpacked, and refuse what tries to leave its root.

umoci confines paths itself; this is the first of two locks, and the one with a clear message.
"""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from whimbrel.model.errors import BadInput

MAX_MEMBERS = 2_000_000
MAX_UNPACKED_BYTES = 64 << 30
_MAX_LINKS = 40


class ImageLabels(NamedTuple):
    entrypoint: tuple[str, ...]


def prescan_layout(layout: Path, reference: str) -> ImageLabels:
    """Check every layer of the one image in `layout`, whose digests are known good. Raises BadInput."""
    index = _blob_json(layout / "index.json", reference)
    manifest = _blob_json(_blob(layout, index["manifests"][0]["digest"]), reference)
    try:
        config = _blob_json(_blob(layout, manifest["config"]["digest"]), reference)
        tree = Tree()
        for layer in manifest["layers"]:
            with _open_layer(_blob(layout, layer["digest"]), str(layer["mediaType"]), reference) as stream:
                scan_layer(stream, tree, reference)
        entrypoint = (config.get("config") or {}).get("Entrypoint") or ()
        return ImageLabels(tuple(str(word) for word in entrypoint))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"image {reference} is not a container image: {error!r} in its manifest") from error


class Tree:
    """What the layers so far would put where: enough to follow symbolic links without a disk."""

    def __init__(self) -> None:
        self.links: dict[str, str] = {}
        self.members = 0
        self.bytes = 0

    def escapes(self, path: str, *, follow_last: bool = False) -> bool:
        """Whether a plain unpacker, following links on the real disk, would leave the root at `path`."""
        return self._resolve(path, 0, follow_last) is None

    def forget(self, path: str) -> None:
        """`path` became something else than a link, or went away with all below it."""
        for known in [link for link in self.links if link == path or link.startswith(path + "/")]:
            del self.links[known]

    def _resolve(self, path: str, depth: int, follow_last: bool) -> str | None:
        at: list[str] = []
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for position, part in enumerate(parts):
            if part == "..":
                if not at:
                    return None
                at.pop()
                continue
            at.append(part)
            target = self.links.get("/".join(at))
            if target is None or (position == len(parts) - 1 and not follow_last):
                continue
            if depth >= _MAX_LINKS or target.startswith("/"):
                return None
            at.pop()
            resolved = self._resolve("/".join([*at, target]), depth + 1, True)
            if resolved is None:
                return None
            at = resolved.split("/") if resolved else []
        return "/".join(at)


class _Padded:
    """A tar stream with the zeros at its end that umoci leaves out and tar readers in Go do not miss."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._size, self._padding = stream, 0, b""
        self._ended = False

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._size += len(data)
        if not data and not self._ended:
            self._ended = True
            self._padding = bytes(-self._size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
        if not data:
            data, self._padding = self._padding[:size], self._padding[size:]
        return data


def scan_layer(stream: IO[bytes], tree: Tree, reference: str) -> None:
    """Check one uncompressed layer; `tree` carries the links of the layers below. Raises BadInput."""
    try:
        with tarfile.open(fileobj=_Padded(stream), mode="r|") as archive:  # type: ignore[arg-type]
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every member for ever
                tree.members += 1
                tree.bytes += member.size
                if tree.members > MAX_MEMBERS or tree.bytes > MAX_UNPACKED_BYTES:
                    raise BadInput(
                        f"image {reference} is too large: more than {MAX_MEMBERS} files or "
                        f"{MAX_UNPACKED_BYTES >> 30} GiB"
                    )
                problem = _problem(member, tree)
                if problem:
                    raise BadInput(f"image {reference} is refused: member {member.name!r} {problem}")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadInput(f"image {reference} has a layer that is no readable tar archive: {error}") from error


def _problem(member: tarfile.TarInfo, tree: Tree) -> str:
    name = member.name
    if name.startswith("/"):
        return "has an absolute path"
    if ".." in name.split("/"):
        return "climbs out of the image with '..'"
    path = "/".join(part for part in name.split("/") if part not in ("", "."))
    if tree.escapes(path):
        return "would be written through a symbolic link that leads out of the image"
    if member.isblk() or (member.ischr() and not path.startswith("dev/")):
        return "is a device node"
    if member.islnk():
        target = member.linkname
        if target.startswith("/") or ".." in target.split("/") or tree.escapes(target):
            return f"is a hard link to {target!r}, out of the image"
    base = path.rpartition("/")[2]
    if base.startswith(".wh."):
        tree.forget(path.rpartition("/")[0] if base == ".wh..wh..opq" else path.replace(".wh.", "", 1))
    elif member.issym():
        tree.forget(path)
        tree.links[path] = member.linkname
    else:
        tree.forget(path) if path in tree.links else None
    return ""


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    return layout / "blobs" / algorithm / value


def _blob_json(path: Path, reference: str) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"image {reference} is not a container image: {error}") from error


def _open_layer(path: Path, media_type: str, reference: str) -> IO[bytes]:
    if media_type.endswith("+gzip"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    if media_type.endswith(".tar"):
        return path.open("rb")
    raise BadInput(
        f"image {reference} has a layer of type {media_type}: convert it with `skopeo copy`, gzip or plain"
    )
