"""What a user may ask for, and what it was given: `coordinated` III, discovery and deployment."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from whimbrel.model.edge import MOST_BYTES, MOST_MS, Amounts
from whimbrel.model.errors import BadInput
from whimbrel.model.numbers import check
from whimbrel.model.service import NAME_PATTERN


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """An application that is offered: each user that asks for it gets a service of its own.

    `image`, `ports`, `args`, `env`, `memory_limit_bytes` and `workload` are those of the service. `cpus` to
    `network_bps` are what one service takes of its server (3c); `task_bytes` is S_u, `tasks_per_s` and `processing_ms`
    (on a server of `reference_power`, 0: the region's median) count until they are measured. `max_delay_ms`: the
    agreed end-to-end delay (SLA), 0 for none.
    """

    name: str
    image: str
    ports: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    memory_limit_bytes: int = 0
    workload: str = ""
    cpus: float = 0.1
    memory_bytes: float = float(64 << 20)
    storage_bytes: float = 0.0
    network_bps: float = 0.0
    task_bytes: float = 1000.0
    tasks_per_s: float = 1.0
    processing_ms: float = 0.0
    reference_power: float = 0.0
    max_delay_ms: float = 0.0

    def __post_init__(self) -> None:
        whose = f"application {self.name}"
        if not NAME_PATTERN.fullmatch(self.name):
            raise BadInput(f"application name {self.name!r} is not valid: use 1 to 40 of a-z, 0-9 and '-'")
        if not self.image:
            raise BadInput(f"{whose}: it has no image: name one, like oci:PATH")
        self.demand.check(whose)
        check(whose, "task_bytes", self.task_bytes, 0, MOST_BYTES)
        check(whose, "tasks_per_s", self.tasks_per_s, 0, 1e6)
        check(whose, "processing_ms", self.processing_ms, 0, MOST_MS)
        check(whose, "reference_power", self.reference_power, 0, 1e12)
        check(whose, "max_delay_ms", self.max_delay_ms, 0, MOST_MS)

    @property
    def demand(self) -> Amounts:
        return Amounts(
            cpus=self.cpus,
            memory_bytes=self.memory_bytes,
            storage_bytes=self.storage_bytes,
            network_bps=self.network_bps,
        )


class SessionState(StrEnum):
    DEPLOYING = "deploying"
    READY = "ready"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A user and its service. `address` without prefix length, "" until it is ready; `base_station`: where the user was
    when the service was placed last, by which planners know that it has left. `server`: where the service runs, as it
    was seen last."""

    user: str
    application: str
    service: str
    state: SessionState
    server: str = ""
    base_station: str = ""
    address: str = ""
    ports: tuple[str, ...] = ()
    workload: str = ""
    env: tuple[str, ...] = ()


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    """A user's request for an application."""

    application: str
