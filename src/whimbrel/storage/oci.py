"""Image references, and which image of an OCI layout they mean."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from whimbrel.model.errors import BadInput

_TAG_KEY = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEX_MAX_BYTES = 4 << 20


class Found(NamedTuple):
    """`source` is the image in skopeo's words."""

    digest: str
    source: str


def parse_reference(reference: str) -> tuple[str, Path, str]:
    """``oci:/images/echo:v1`` -> ("oci", /images/echo, "v1"); no tag is "". Raises BadInput."""
    kind, separator, rest = reference.partition(":")
    if kind not in ("oci", "oci-archive", "rootfs") or not separator or not rest:
        raise BadInput(f"image {reference!r} is not valid: write oci:PATH[:TAG], oci-archive:PATH[:TAG] or rootfs:DIR")
    path, tag = rest, ""
    if kind != "rootfs" and not Path(rest).exists():
        path, _, tag = rest.rpartition(":")
        path, tag = (path, tag) if path else (rest, "")
    place = Path(path)
    if not place.is_absolute():
        raise BadInput(f"image {reference}: {path} is not an absolute path (the agent has its own working folder)")
    if ":" in path:
        raise BadInput(f"image {reference}: a path with ':' in it cannot be told from a tag, move the image")
    if kind == "oci-archive":
        if not place.is_file():
            raise BadInput(f"image {reference}: there is no file {place} on this node")
    elif not place.is_dir():
        raise BadInput(f"image {reference}: there is no folder {place} on this node")
    return kind, place.resolve(), tag


def find_image(kind: str, path: Path, tag: str) -> Found:
    """The one image that `tag` names, or the only one when it is empty. Raises BadInput."""
    index = _read_index(kind, path)
    entries = [entry for entry in index if isinstance(entry, dict)]
    tags = [str((entry.get("annotations") or {}).get(_TAG_KEY, "")) for entry in entries]
    if tag:
        chosen = [entry for entry, name in zip(entries, tags, strict=True) if name == tag]
        if not chosen:
            known = ", ".join(sorted(filter(None, tags))) or "none"
            raise BadInput(f"image {path} has no tag {tag!r}; its tags: {known}")
    else:
        chosen = entries
        if len({entry.get("digest") for entry in entries}) != 1:
            known = ", ".join(sorted(filter(None, tags))) or "none"
            raise BadInput(f"image {path} holds {len(entries)} images: name one by its tag (its tags: {known})")
        tag = tags[0]
    digest = chosen[-1].get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise BadInput(f"image {path} is not valid: digest {digest!r} is not a sha256 digest")
    return Found(digest, f"{kind}:{path}:{tag}" if tag else f"{kind}:{path}")


def _read_index(kind: str, path: Path) -> list[Any]:
    try:
        if kind == "oci":
            if not (path / "oci-layout").is_file():
                raise BadInput(f"{path} is not an OCI image layout: it has no file oci-layout")
            raw = (path / "index.json").read_bytes()[:_INDEX_MAX_BYTES]
        else:
            with tarfile.open(path) as archive:
                members = {member.name.removeprefix("./"): member for member in archive}
                if "oci-layout" not in members:
                    raise BadInput(f"{path} is not an OCI archive: it has no file oci-layout")
                file = archive.extractfile(members["index.json"])
                raw = file.read(_INDEX_MAX_BYTES) if file else b""
        index = msgspec.json.decode(raw)
    except (tarfile.TarError, EOFError) as error:
        raise BadInput(f"{path} is not an OCI archive: it is no tar file, or it is cut short; copy it again") from error
    except (OSError, KeyError, msgspec.DecodeError) as error:
        raise BadInput(f"{path} is not an OCI image: its index.json cannot be read ({error})") from error
    manifests = index.get("manifests") if isinstance(index, dict) else None
    if not isinstance(manifests, list) or not manifests:
        raise BadInput(f"{path} is not an OCI image: its index.json lists no image")
    return manifests
