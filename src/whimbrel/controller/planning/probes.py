"""What services that have never moved would leave for their freeze: probed while they work (`coordinated`, IV-B)."""

from __future__ import annotations

import asyncio
import time

import structlog

from whimbrel.controller.services import Services
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.service import PROBE_S, ServiceProbe

AGAIN_S = 10.0
TIMES = 3
"""A service that has just been deployed does not work yet as it will: the last of these counts."""

log = structlog.get_logger()


class Probes:
    """Probes in tasks of its own; nobody waits for one."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._found: dict[str, ServiceProbe] = {}
        self._asked: dict[str, tuple[int, float]] = {}  # how often, and when last
        self._tasks: set[asyncio.Task[None]] = set()

    def delta_bytes(self, service: str) -> float | None:
        """As last probed; None before. Has it probed if that is due."""
        times, last_s = self._asked.get(service, (0, 0.0))
        now_s = time.monotonic()
        if times < TIMES and (not times or now_s - last_s >= AGAIN_S):
            self._asked[service] = times + 1, now_s
            task = asyncio.create_task(self._probe(service), name=f"probe {service}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        found = self._found.get(service)
        return float(found.delta_bytes) if found is not None else None

    async def _probe(self, service: str) -> None:
        try:
            self._found[service] = await self._services.probe(service, PROBE_S)
        except WhimbrelError as error:  # it is planned for with what is usual
            log.info("a service could not be probed", service=service, why=str(error))

    def forget(self, service: str) -> None:
        """It has moved, and from now on its migrations tell; or it is gone."""
        self._found.pop(service, None)
        self._asked.pop(service, None)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
