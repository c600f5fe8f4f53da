"""TCP connections of a service, as they are told from one part to the other."""

from __future__ import annotations

from typing import NamedTuple


class Connection(NamedTuple):
    """Who speaks, with whom: IPv4 addresses with their ports."""

    source: tuple[str, int]
    destination: tuple[str, int]


class Unacknowledged(NamedTuple):
    """What had been sent when the service was frozen, and not acknowledged: `contents` begin with number `sequence`.
    All before number `acknowledges` has come from the other side, for whom there is room for `window` (as the header
    carries it). `stamp`: of the connection's clock, which makes `stamps_per_s`; None without timestamps."""

    sequence: int
    acknowledges: int
    window: int
    contents: bytes
    stamp: int | None
    stamps_per_s: int = 1_000
