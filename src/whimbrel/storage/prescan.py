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
    """What umoci does not tell apart: the entry point without the command."""

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
    """Where the members so far put symbolic links: enough to follow them without a disk.

    A node is a folder (a dict by name, only of what leads to links) or a link (its target).
    """

    def __init__(self) -> None:
        self._root: dict[str, Any] = {}
        self.members = 0
        self.bytes = 0

    def resolve(self, path: str) -> list[str] | None:
        """The real place of `path`, its last part not followed.

        None when a plain unpacker, which follows the links on its disk, would leave the root on the way.
        """
        at: list[str] = []
        todo = _parts(path)[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                if not at:
                    return None
                at.pop()
                continue
            at.append(part)
            target = self._node(at) if todo else None
            if isinstance(target, str):
                links += 1
                if links > _MAX_LINKS or target.startswith("/"):
                    return None
                at.pop()
                todo += _parts(target)[::-1]
        return at

    def put_link(self, place: list[str], target: str) -> None:
        folder = self._root
        for part in place[:-1]:
            below = folder.get(part)
            if not isinstance(below, dict):
                below = folder[part] = {}
            folder = below
        folder[place[-1]] = target

    def forget(self, place: list[str]) -> None:
        """What was at `place` is no link any more, and has none below."""
        folder = self._node(place[:-1])
        if place and isinstance(folder, dict):
            folder.pop(place[-1], None)

    def is_link(self, place: list[str]) -> bool:
        return isinstance(self._node(place), str)

    def _node(self, place: list[str]) -> Any:
        node: Any = self._root
        for part in place:
            if not isinstance(node, dict):
                return None
            node = node.get(part)
        return node


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


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
        with tarfile.open(fileobj=cast(IO[bytes], _Padded(stream)), mode="r|") as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every member for ever
                tree.members += 1
                tree.bytes += member.size
                if tree.members > MAX_MEMBERS or tree.bytes > MAX_UNPACKED_BYTES:
                    raise BadInput(
                        f"image {reference} is too large: more than {MAX_MEMBERS} files or "
                        f"{MAX_UNPACKED_BYTES >> 30} GiB; build a smaller one"
                    )
                problem = _problem(member, tree)
                if problem:
                    raise BadInput(
                        f"image {reference} is refused: member {member.name!r} {problem}; build it without that"
                    )
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadInput(
            f"image {reference} has a layer that is no readable tar archive: {error}; copy it here again"
        ) from error


def _problem(member: tarfile.TarInfo, tree: Tree) -> str:
    name, target = member.name, member.linkname
    if name.startswith("/"):
        return "has an absolute path"
    if ".." in name.split("/"):
        return "climbs out of the image with '..'"
    place = tree.resolve(name)
    if place is None:
        return "would be written through a symbolic link that leads out of the image"
    if member.isblk() or (member.ischr() and place[:1] != ["dev"]):
        return "is a device node"
    if member.islnk() and (target.startswith("/") or ".." in _parts(target) or tree.resolve(target) is None):
        return f"is a hard link to {target!r}, out of the image"
    if place and place[-1].startswith(".wh."):
        hidden = place[:-1] if place[-1] == ".wh..wh..opq" else [*place[:-1], place[-1].removeprefix(".wh.")]
        tree.forget(hidden)
    elif member.issym():
        if not place:
            return "replaces the root of the image by a symbolic link"
        tree.put_link(place, target)
    elif not member.isdir() or tree.is_link(place):
        tree.forget(place)
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
    raise BadInput(f"image {reference} has a layer of type {media_type}: convert it with `skopeo copy`, gzip or plain")
