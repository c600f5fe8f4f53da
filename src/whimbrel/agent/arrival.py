"""One incoming migration, as its agent knows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from whimbrel.agent.receiver import ReceivingProcess
from whimbrel.memory.keeper import Keeper
from whimbrel.migrate.words import said
from whimbrel.model.service import ServiceStatus


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What a restarted agent must know of an incoming migration; on file until the service is adopted or removed."""

    migration: str
    service: ServiceStatus
    worker_pid: int
    worker_start: int

    @property
    def name(self) -> str:
        return self.service.spec.name


@dataclass
class Arrival:
    """`settled`: nothing changes any more; the service was adopted here, or removed."""

    ticket: Ticket
    work_dir: Path
    worker: ReceivingProcess
    keeper: Keeper
    reading: asyncio.Task[None] | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int = 0
    error: str = ""

    def said(self, word: str) -> bool:
        return said(self.work_dir, word)

    def start_keeping(self) -> None:
        loop = asyncio.get_running_loop()

        def take() -> None:
            if not self.keeper.take():
                loop.remove_reader(self.keeper.fileno())

        loop.add_reader(self.keeper.fileno(), take)

    def end_keeping(self) -> None:
        asyncio.get_running_loop().remove_reader(self.keeper.fileno())
        self.keeper.close()


def ticket_path(work_dir: Path) -> Path:
    return work_dir / "ticket.json"


def start_ticks(pid: int) -> int:
    """When a process was started (clock ticks since boot); 0 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return 0
