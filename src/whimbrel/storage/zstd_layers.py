"""Layers packed with zstd, unpacked to plain ones: umoci up to 0.4 knows gzip only.

`skopeo` has checked the digests of all blobs before. The layout gets a new manifest, so its digest is another one;
the image goes on under the digest that its reference named, and umoci checks each layer against the image's own list.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from whimbrel.model.errors import BadInput
from whimbrel.storage.prescan import MAX_UNPACKED_BYTES

_READ_BYTES = 1 << 20
_ZSTD = "+zstd"


def recode_layout(layout: Path, reference: str) -> None:
    """Unpack the zstd layers of the one image in `layout`; without one, nothing is touched. Raises BadInput."""
    try:
        index = _read(layout / "index.json")
        manifest = _read(_blob(layout, index["manifests"][0]["digest"]))
        layers = manifest["layers"]
        packed = [layer for layer in layers if str(layer["mediaType"]).endswith(_ZSTD)]
        plain = {digest: _unpacked(layout, digest, reference) for digest in {layer["digest"] for layer in packed}}
        for layer in packed:
            layer.update(plain[layer["digest"]])
            layer["mediaType"] = str(layer["mediaType"]).removesuffix(_ZSTD)
        if packed:
            index["manifests"][0].update(_put(layout, msgspec.json.encode(manifest)))
            (layout / "index.json").write_bytes(msgspec.json.encode(index))
    except (KeyError, TypeError, AttributeError, IndexError, OSError, msgspec.DecodeError) as error:
        raise BadInput(f"image {reference} is not a container image: {error!r} in its manifest") from error


def _read(path: Path) -> Any:
    return msgspec.json.decode(path.read_bytes())


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    return layout / "blobs" / algorithm / value


def _put(layout: Path, content: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    _blob(layout, digest).write_bytes(content)
    return {"digest": digest, "size": len(content)}


def _unpacked(layout: Path, digest: str, reference: str) -> dict[str, Any]:
    """The blob's contents as a blob of their own; the packed one goes."""
    source, target = _blob(layout, digest), layout / "blobs" / "unpacking"
    summary, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as packed, target.open("wb") as plain:
            reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
            while piece := reader.read(_READ_BYTES):
                size += len(piece)
                if size > MAX_UNPACKED_BYTES:
                    raise BadInput(
                        f"image {reference} is too large: more than {MAX_UNPACKED_BYTES >> 30} GiB in a layer"
                    )
                summary.update(piece)
                plain.write(piece)
    except zstandard.ZstdError as error:
        raise BadInput(f"image {reference} has a layer that is no readable zstd: {error}") from error
    unpacked = f"sha256:{summary.hexdigest()}"
    os.replace(target, _blob(layout, unpacked))
    source.unlink()
    return {"digest": unpacked, "size": size}
