"""A link's rate, delay and queue, as it was asked for."""

from __future__ import annotations

import msgspec

QUEUE_MS = 50.0
LEAST_QUEUE_BYTES = 256 * 1024  # a switch's port: four segments as the kernel hands them down


class LinkShape(msgspec.Struct, frozen=True, kw_only=True):
    """Each direction by itself: `rate_bps` (0: as fast as it goes), `delay_ms` one way, and `queue_bytes`, what waits
    at most for its turn above the rate before the newest is dropped (0: `QUEUE_MS` of the rate)."""

    rate_bps: float = 0.0
    delay_ms: float = 0.0
    queue_bytes: int = 0

    @property
    def queue_limit_bytes(self) -> int:
        return self.queue_bytes or max(LEAST_QUEUE_BYTES, int(self.rate_bps / 8 * QUEUE_MS / 1e3))

    @property
    def is_plain(self) -> bool:
        """Nothing is asked for."""
        return not self.rate_bps and not self.delay_ms
