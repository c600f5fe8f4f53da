"""A migration: the request, and the record that every tool reads (field names are stable, see DESIGN)."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    RUNNING = "running"
    DONE = "done"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DRY_RUN = "dry-run"


class MigrationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`strategy` is a name that `whimbrel.plan.strategies` knows. `max_downtime_ms`, `deadline_ms` and
    `bandwidth_bps` 0 mean: no limit asked for. `handover_in_ms`: when the user will leave, from now; the freeze
    waits for it, and memory crosses ahead (0: nobody knows). `freeze_in_ms`: when the freeze is to begin, from now, for
    who has reckoned that itself (0: by `handover_in_ms`). `handover_ms`: how long the user will be away (0: nobody
    knows); what has not crossed by then may follow the resume."""

    id: str
    service: str
    destination: str
    strategy: str
    max_downtime_ms: float = 0.0
    deadline_ms: float = 0.0
    bandwidth_bps: float = 0.0
    max_rounds: int = 0
    handover_in_ms: float = 0.0
    handover_ms: float = 0.0
    freeze_in_ms: float = 0.0
    dry_run: bool = False


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    start_ms: float
    duration_ms: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """`raw_bytes` of dirty pages became `bytes_sent` on the way; `zero_pages` of them held nothing but zeros and
    did not cross; `codec`: how the others did, like ``zstd`` or ``xor+zstd 63 %, raw 37 %`` (by pages). `file_bytes`
    of `bytes_sent` were for files."""

    n: int
    dirty_pages: int
    bytes_sent: int
    duration_ms: float
    raw_bytes: int = 0
    zero_pages: int = 0
    codec: str = ""
    file_bytes: int = 0


class MigrationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One migration, whole. Times in ms, sizes in bytes. `asked` is the strategy that was asked for: where that was
    ``auto``, `strategy` is what it came to and `reason` says why. `outage_*`, `lost`, `resets` and `state_ok` are
    measured by a client outside and are null when nobody measured. Of `bytes_sent`, `image_bytes` went for an image
    that the destination had not, `file_bytes` for files. After the resume the service touched memory that was
    not in place yet `faults` times; answering them took `fault_ms` in all."""

    id: str
    service: str
    source: str
    destination: str
    strategy: str
    outcome: Outcome
    asked: str = ""
    workload: str = ""
    reason: str = ""
    error: str = ""
    error_code: str = ""
    started_unix_s: float = 0.0
    total_ms: float = 0.0
    freeze_ms: float = 0.0
    outage_udp_ms: float | None = None
    outage_tcp_ms: float | None = None
    lost: int | None = None
    resets: int | None = None
    state_ok: bool | None = None
    rss_bytes: int = 0
    bytes_sent: int = 0
    raw_bytes: int = 0
    image_bytes: int = 0
    file_bytes: int = 0
    faults: int = 0
    fault_ms: float = 0.0
    phases: tuple[Phase, ...] = ()
    rounds: tuple[Round, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One line of news from a running migration: the phase it is in, and how far (0..1, -1 = unknown). `ready`: nothing
    but its time keeps the freeze."""

    migration: str
    phase: str
    detail: str = ""
    fraction: float = -1.0
    ready: bool = False
