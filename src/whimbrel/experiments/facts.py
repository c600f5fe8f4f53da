"""What can be known of an image without moving anything."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec

from whimbrel.workloads.builder import Image

PIECE_BYTES = 1 << 20


def image_bytes(image: Image) -> int:
    """Size of all layers as they are unpacked, which is what `docker images` shows. Reads them whole."""
    index = msgspec.json.decode((image.layout / "index.json").read_bytes())
    manifest = msgspec.json.decode(_blob(image.layout, index["manifests"][0]["digest"]).read_bytes())
    return sum(_unpacked_bytes(_blob(image.layout, layer["digest"])) for layer in manifest["layers"])


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / Path(*digest.split(":"))


def _unpacked_bytes(blob: Path) -> int:
    with gzip.open(blob) as layer:
        return sum(len(piece) for piece in iter(lambda: layer.read(PIECE_BYTES), b""))
