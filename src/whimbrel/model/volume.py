"""Volumes: folders of a service outside of its writable layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from posixpath import normpath

import msgspec

from whimbrel.model.errors import BadInput
from whimbrel.model.units import parse_size_bytes

SMALLEST_VOLUME_BYTES = 16 << 20
_NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,38}[a-z0-9])?")
_KERNELS = ("/proc", "/sys", "/dev")


class Volume(msgspec.Struct, frozen=True):
    """`path` is where the container sees it; `size_bytes` 0: it may fill the node's disk."""

    name: str
    path: str
    size_bytes: int = 0


class VolumeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A volume on a node. `used_bytes` is what its files take; `in_use`: its service is there."""

    service: str
    name: str
    node: str
    path: str
    size_bytes: int
    used_bytes: int
    in_use: bool


def parse_volume(text: str) -> Volume:
    """``data:/var/lib/data`` or ``data:/var/lib/data:2GiB``. Raises BadInput."""
    name, colon, rest = text.partition(":")
    path, _, size = rest.partition(":")
    if name.startswith((".", "/", "~")):
        raise BadInput(
            f"volume {text!r} names a folder of the host, which cannot move with the service: give a name instead "
            "(NAME:/path), and copy what it needs into the image or the running service"
        )
    if not colon or not _NAME.fullmatch(name):
        raise BadInput(f"volume {text!r} is not valid: write NAME:/path or NAME:/path:SIZE, NAME of a-z, 0-9, '_.-'")
    if not path.startswith("/") or path.startswith("//") or normpath(path) != path or path == "/":
        raise BadInput(
            f"volume {text!r} is not valid: {path or 'nothing'!r} is not a plain absolute path in the container"
        )
    if any(path == own or path.startswith(f"{own}/") for own in _KERNELS):
        raise BadInput(f"volume {text!r} is not valid: {path} is the kernel's own, choose a path outside of it")
    size_bytes = parse_size_bytes(size) if size else 0
    if size and size_bytes < SMALLEST_VOLUME_BYTES:
        raise BadInput(
            f"volume {text!r} is too small: the least is {SMALLEST_VOLUME_BYTES >> 20}MiB, or leave the size out"
        )
    return Volume(name, path, size_bytes)


def parse_volumes(texts: Iterable[str]) -> tuple[Volume, ...]:
    """All volumes of one service. Raises BadInput, also for a name twice and a path inside another's."""
    volumes: list[Volume] = []
    for text in texts:
        volume = parse_volume(text)
        for other in volumes:
            if other.name == volume.name:
                raise BadInput(f"volume {volume.name} is named twice: give each its own name")
            if f"{volume.path}/".startswith(f"{other.path}/") or f"{other.path}/".startswith(f"{volume.path}/"):
                raise BadInput(f"volumes {other.name} and {volume.name} are inside of each other: choose other paths")
        volumes.append(volume)
    return tuple(volumes)
