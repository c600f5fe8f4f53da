"""What a strategy is made of. The parts themselves are in `whimbrel.migrate`; here is only which of them, and how."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Carry(StrEnum):
    """How memory crosses."""

    STREAM = "stream"
    """Over our page channel into the destination's page store."""
    RSYNC = "rsync"
    """As layers of CRIU images, staged in tmpfs at both ends and copied by rsync."""
    PAGE_SERVER = "page-server"
    """Through CRIU's page server, which writes the layers into the destination's tmpfs; nothing staged here."""
    SHARED = "shared"
    """As layers of CRIU images on a file system that both nodes mount; nothing is copied."""


class Codec(StrEnum):
    """What is done to pages on the stream. Zero pages never cross, whatever the codec."""

    AUTO = "auto"
    """zstd, and XOR against the copy that crossed before, where that is measured to pay."""
    DELTA = "delta"
    """XOR and zstd always."""
    ZSTD = "zstd"
    """zstd always."""
    RAW = "raw"


@dataclass(frozen=True)
class Rounds:
    """How often memory crosses while the service runs; `limit` 0 means: never, 1: a full copy ahead.

    With `converge` they end earlier, as soon as `plan.convergence` says so.
    """

    limit: int
    converge: bool = False


@dataclass(frozen=True)
class Strategy:
    """`lazy`: the restored program runs before all of its pages are in place. `behind`: pages that did not cross
    before the freeze are fetched after it, so the freeze carries none. `source`: where it is described."""

    name: str
    summary: str
    source: str
    carry: Carry
    rounds: Rounds
    lazy: bool = False
    behind: bool = False
    codec: Codec = Codec.AUTO
