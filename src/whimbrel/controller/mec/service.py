"""The MEC interfaces of a running controller, started and stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from fastapi import APIRouter

from whimbrel.controller.handovers.mec012 import Mec012
from whimbrel.controller.mec.ams import service as ams
from whimbrel.controller.mec.ams.routes import PREFIX as AMS
from whimbrel.controller.mec.ams.routes import ams_routes
from whimbrel.controller.mec.book import MecBook
from whimbrel.controller.mec.delivery import Deliverer
from whimbrel.controller.mec.location.models import KINDS as LOCATION_KINDS
from whimbrel.controller.mec.location.routes import location_routes
from whimbrel.controller.mec.location.service import Locations
from whimbrel.controller.mec.people import People
from whimbrel.controller.mec.rni import service as rni
from whimbrel.controller.mec.rni.routes import PREFIX as RNI
from whimbrel.controller.mec.rni.routes import rni_routes
from whimbrel.controller.mec.rnis_callback import rnis_routes
from whimbrel.controller.mec.settings import MecConfig
from whimbrel.controller.mec.subscriptions import Subscriptions, websocket_routes
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.planning.loop import Planning
from whimbrel.controller.region import Region
from whimbrel.controller.services import Services
from whimbrel.controller.store import Database

AGAIN_AFTER_S = 1.0

Work = Callable[[], Awaitable[None]]
log = structlog.get_logger()


class Mec:
    def __init__(
        self,
        config: MecConfig,
        database: Database,
        region: Region,
        services: Services,
        migrations: Migrations,
        planning: Planning,
        wifi: frozenset[str],
    ) -> None:
        self._config = config
        self._handovers = planning.handovers
        book = MecBook(database)
        self.deliverer = Deliverer(config.callbacks)
        people = People(config, planning.users)
        location_kinds = {kind.path: kind.type for kind in LOCATION_KINDS}
        self._subscriptions = {
            name: Subscriptions(name, kinds, book, self.deliverer, config.callbacks)
            for name, kinds in (("ams", ams.kinds()), ("rni", rni.kinds()), ("location", location_kinds))
        }
        self.registrations = ams.Registrations(book, config.speakers)
        self.mobility = ams.Mobility(
            self.registrations, self._subscriptions["ams"], services, planning.deployment, people
        )
        self.radio = rni.RadioInformation(config, self._subscriptions["rni"], people)
        self.locations = Locations(config, self._subscriptions["location"], people, wifi)
        self._tasks: list[asyncio.Task[None]] = []
        planning.users.listeners += [people.hear, self.radio.hear]
        people.listeners.append(self.locations.step)
        region.listeners.append(self.locations.node)
        migrations.listeners.append(self.mobility.hear)
        migrations.checks.append(self.mobility.check_may_move)

    async def load(self) -> None:
        """What is kept. Before anything can happen that would have to be told."""
        await self.registrations.load()
        for subscriptions in self._subscriptions.values():
            await subscriptions.load()

    async def start(self) -> None:
        work: dict[str, Work] = {
            "mobility": self.mobility.keep_telling,
            "neighbours": self.mobility.keep_looking,
            "locations": self.locations.keep_looking,
        }
        work |= {f"{name} subscriptions": one.keep for name, one in self._subscriptions.items()}
        self._tasks = [asyncio.create_task(_for_ever(name, one), name=name) for name, one in work.items()]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.deliverer.close()

    def routes(self) -> list[APIRouter]:
        url = self._config.url
        source = self._handovers
        return [
            *(rnis_routes(source) if isinstance(source, Mec012) else ()),
            *ams_routes(self.mobility, url),
            *rni_routes(self.radio, url),
            *location_routes(self.locations, url),
            websocket_routes(AMS, self._subscriptions["ams"], self.deliverer),
            websocket_routes(RNI, self._subscriptions["rni"], self.deliverer),
        ]


async def _for_ever(name: str, work: Work) -> None:
    """A mistake of ours must not end it."""
    while True:
        try:
            await work()
        except Exception as error:
            log.exception("an interface met an error that nobody expected", what=name, exc_info=error)
            await asyncio.sleep(AGAIN_AFTER_S)
