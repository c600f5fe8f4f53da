"""What is read out of a sample. The phases' names are those of the record (docs/how-it-works.md, "The freeze")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from whimbrel.experiments.model import Quantity, Sample
from whimbrel.model.migration import MigrationRecord
from whimbrel.model.units import PAGE_BYTES

MS, PAGES, BYTES, PERCENT, PER_S = "ms", "pages", "bytes", "%", "/s"


def phase_ms(record: MigrationRecord, *names: str) -> float | None:
    """Time in all phases of these names; None when the record has none of them."""
    found = [phase.duration_ms for phase in record.phases if phase.name in names]
    return sum(found) if found else None


def of_record(key: str, label: str, unit: str, read: Callable[[MigrationRecord], float | None]) -> Quantity:
    return Quantity(key, label, unit, lambda sample: None if sample.record is None else read(sample.record))


def of_phases(key: str, label: str, *names: str) -> Quantity:
    return of_record(key, label, MS, lambda record: phase_ms(record, *names))


def round_part(number: int, part: str, label: str) -> Quantity:
    return of_phases(f"round.{number}.{part}", label, f"round.{number}.{part}")


def _restore_ms(record: MigrationRecord) -> float | None:
    """From the arrival of images, last pages and files to the first instruction: what is left of the freeze. (Where
    pages are streamed CRIU starts before, when its images are there.)"""
    before = phase_ms(record, "freeze.stop", "freeze.dump", "freeze.pages", "freeze.files", "freeze.copy")
    return None if before is None else record.freeze_ms - before


def _last_pages(record: MigrationRecord) -> float | None:
    return record.rounds[-1].dirty_pages if record.rounds else None


def _available_ms(record: MigrationRecord) -> float | None:
    """From the request to the first instruction at the destination, the paper's total (Section II-A7)."""
    ends = [phase.start_ms + phase.duration_ms for phase in record.phases if phase.name.startswith("freeze")]
    return max(ends) if ends else None


def _available_less_root_ms(record: MigrationRecord) -> float | None:
    available = _available_ms(record)
    return None if available is None else available - (phase_ms(record, "rootfs", "rounds.files") or 0.0)


def _ahead_ms(record: MigrationRecord) -> float:
    """What dumps and copies of memory took while the service ran."""
    whole_ms = phase_ms(record, "rounds")
    if whole_ms is None:
        return sum(phase.duration_ms for phase in record.phases if phase.name.startswith("round."))
    return whole_ms - (phase_ms(record, "rounds.files") or 0.0)


def _available_less_ahead_ms(record: MigrationRecord) -> float | None:
    available = _available_ms(record)
    return None if available is None else available - _ahead_ms(record)


def renamed(quantity: Quantity, key: str) -> Quantity:
    return replace(quantity, key=key)


def counted(key: str, label: str, read: Callable[[MigrationRecord], float | None]) -> Quantity:
    return replace(of_record(key, label, "", read), summed=True)


OUTAGE_TCP = of_record("outage", "downtime seen by the client", MS, lambda record: record.outage_tcp_ms)
FREEZE = of_record("freeze", "freeze", MS, lambda record: record.freeze_ms)
TOTAL = of_record("total", "total, until it runs there", MS, _available_ms)
TOTAL_LESS_AHEAD = of_record("total_less_ahead", "the same without dumps ahead", MS, _available_less_ahead_ms)
TOTAL_LESS_ROOT = of_record("total_less_root", "the same without the copy of the root", MS, _available_less_root_ms)
FINISHED = of_record("finished", "until the source is tidied up", MS, lambda record: record.total_ms)
LAST_PAGES = of_record("last_pages", "pages in the last dump", PAGES, _last_pages)
RESTORE = of_record("final.restore", "restore", MS, _restore_ms)
LOST = counted("lost", "lost requests and acknowledged writes", lambda record: record.lost)
RESETS = counted("resets", "connections reset", lambda record: record.resets)
DAMAGED = counted("damaged", "migrations after which the state was wrong", lambda record: record.state_ok is False)

# Of strategies that stage CRIU images, as the paper's do: writing the last pages is a part of the dump.
STAGED_DUMP = of_phases("final.dump", "dump", "freeze.stop", "freeze.dump", "freeze.pages", "freeze.files")
STAGED_COPY = of_phases("final.copy", "copy", "freeze.copy")
# Of strategies that stream pages: reading them out of the processes and sending them is one.
STREAMED_CHECKPOINT = of_phases("checkpoint", "checkpoint", "freeze.stop", "freeze.dump")
STREAMED_COPY = of_phases("copy", "copy", "freeze.pages", "freeze.files", "freeze.copy")


# Of a full copy ahead and what the migration then ships.
def _first_bytes(record: MigrationRecord) -> float | None:
    return record.rounds[0].dirty_pages * PAGE_BYTES if len(record.rounds) > 1 else None


def _last_bytes(record: MigrationRecord) -> float | None:
    return record.rounds[-1].bytes_sent if len(record.rounds) > 1 else None


def _share_percent(record: MigrationRecord) -> float | None:
    full, last = _first_bytes(record), _last_bytes(record)
    return 100 * last / full if full and last is not None else None


def _reduction_percent(record: MigrationRecord) -> float | None:
    share = _share_percent(record)
    return None if share is None else 100 - share


IMAGE = Quantity("image", "image size", BYTES, lambda sample: sample.facts.get("image_bytes"))
PRE_MIGRATION = of_record("pre_migration", "checkpoint of pre-migration", BYTES, _first_bytes)
PRE_MIGRATION_SENT = of_record(
    "pre_migration_sent",
    "… as it crossed",
    BYTES,
    lambda record: record.rounds[0].bytes_sent if record.rounds else None,
)
MIGRATION = of_record("migration", "checkpoint of migration", BYTES, _last_bytes)
MIGRATION_PAGES = of_record(
    "migration_pages",
    "… its pages, uncompressed",
    BYTES,
    lambda record: record.rounds[-1].dirty_pages * PAGE_BYTES if record.rounds else None,
)
REDUCTION = of_record("reduction", "reduction ratio", PERCENT, _reduction_percent)
SHARE = of_record("share", "migration / pre-migration", PERCENT, _share_percent)


def _less_kept_percent(sample: Sample) -> float | None:
    """As `_share_percent`, of a full checkpoint without the pictures that the service keeps for its users."""
    if sample.record is None or sample.report is None:
        return None
    full, last = _first_bytes(sample.record), _last_bytes(sample.record)
    kept = next((found["remembered_bytes"] for found in sample.report.detail.values()
                 if isinstance(found, dict) and "remembered_bytes" in found), None)  # fmt: skip
    return 100 * last / (full - kept) if full and last is not None and kept is not None and full > kept else None


SHARE_LESS_KEPT = Quantity("share_less_kept", "… of the full one without kept pictures", PERCENT, _less_kept_percent)


def _write_rate(sample: Sample) -> float | None:
    writer = sample.report.detail.get("writer") if sample.report is not None else None
    return writer.get("writes_per_s") if writer else None


WRITE_RATE = Quantity("write_rate", "acknowledged of the writes sent meanwhile", PER_S, _write_rate)
REQUESTS = Quantity(
    "requests",
    "requests answered meanwhile",
    "",
    lambda sample: None if sample.report is None else float(sample.report.answered),
)
