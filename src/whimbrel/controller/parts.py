"""The parts of a running controller, started and stopped together."""

from __future__ import annotations

import asyncio

from whimbrel.controller.access import Access
from whimbrel.controller.config import ControllerConfig
from whimbrel.controller.experiments import Experiments
from whimbrel.controller.live.watch import Watch
from whimbrel.controller.metrics import Metrics
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.planning.book import PlanBook
from whimbrel.controller.planning.loop import Planning
from whimbrel.controller.region import Region
from whimbrel.controller.services import Services
from whimbrel.controller.store import MigrationStore
from whimbrel.controller.stores import Stores
from whimbrel.controller.traces import Traces, exporter_to


class Controller:
    def __init__(self, config: ControllerConfig) -> None:
        self.config = config
        self.access = Access(config.api.tokens)
        self.store = MigrationStore(config.database)
        self.region = Region(config.nodes)
        self.services = Services(self.region, config.address_pool)
        self.stores = Stores(self.region)
        self.migrations = Migrations(self.region, self.services, self.store)
        book = PlanBook(self.store.database)
        self.planning = Planning(config.planning, self.region, self.services, self.migrations, book)
        self.watch = Watch(config, self.region, self.services, self.migrations, self.planning)
        self.metrics = Metrics(self.watch, self.migrations, self.planning)
        self.experiments = Experiments(config.experiments_dir)
        self.traces = Traces(exporter_to(config.traces)) if config.traces else None
        if self.traces is not None:
            self.migrations.listeners.append(self.traces.told)

    async def start(self) -> None:
        await self.region.start()
        await self.migrations.resume()
        await self.planning.start()
        await self.watch.start()

    def end_streams(self) -> None:
        """Those that would go on for as long as somebody listens."""
        self.migrations.end_streams()
        self.watch.news.hang_up()

    async def stop(self) -> None:
        await self.watch.close()
        await self.planning.close()
        await self.migrations.close()
        await self.region.close()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)
        self.store.close()
