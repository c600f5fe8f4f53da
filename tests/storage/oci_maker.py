"""OCI layouts made by hand, as an attacker or a careless tool would: any tar member, any digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import zstandard

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def file(name: str, content: bytes = b"x", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o755
    for key, value in attributes.items():
        setattr(member, key, value)
    return member, content


def special(name: str, kind: bytes, target: str = "", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    return file(name, b"", type=kind, linkname=target, **attributes)


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return special(name, tarfile.DIRTYPE)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return special(name, tarfile.SYMTYPE, target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return special(name, tarfile.LNKTYPE, target)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def make_layout(
    path: Path,
    *layers: bytes,
    tag: str = "v1",
    config: dict[str, Any] | None = None,
    layer_type: str = LAYER_TYPE,
    packed: str = "gzip",
) -> Path:
    """An OCI layout at `path` whose layers are the given tar files, packed with gzip or zstd."""
    if packed == "zstd":
        layer_type = layer_type.removesuffix("+gzip") + "+zstd"
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    def pack(layer: bytes) -> bytes:
        return zstandard.compress(layer) if packed == "zstd" else gzip.compress(layer, mtime=0)

    described = [blob(pack(layer), layer_type) for layer in layers]
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(x).hexdigest() for x in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": described,
    }
    entry = blob(json.dumps(manifest).encode(), manifest["mediaType"])
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index_file = path / "index.json"
    index = json.loads(index_file.read_text()) if index_file.exists() else {"schemaVersion": 2, "manifests": []}
    index["manifests"].append(entry)
    index_file.write_text(json.dumps(index))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return path
