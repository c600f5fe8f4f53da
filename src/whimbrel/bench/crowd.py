"""A region of many made-up users and nodes behind a real controller: what `bench dashboard` looks at.

Controller, API, event stream and pages are the real ones. Users' reports come from here, into the controller's own
process (a network between would only cost processor time), and so do agents, which answer with figures and move
nothing.
`python -m whimbrel.bench.crowd --directory DIR` prints the address, and serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from msgspec.structs import replace

from whimbrel import __version__
from whimbrel.controller.config import parse
from whimbrel.controller.http.app import create_app
from whimbrel.controller.listener import open_listener
from whimbrel.controller.parts import Controller
from whimbrel.model.migration import MigrationRecord, MigrationRequest, Outcome, Phase, Progress, Round
from whimbrel.model.node import Capabilities, Endpoint, NodeStatus, Resources, Role
from whimbrel.model.radio import DelayFigures, HandoverRecord, Hears, LinkState, UserReport
from whimbrel.model.service import ServiceSpec, ServiceState, ServiceStatus
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, RpcServer

SPACING_M = 200.0
REACH_M = 140.0
HYSTERESIS_M = 15.0
EARLIEST_MIGRATION_S = 3.0


@dataclass
class Agent:
    """Answers a controller's calls with figures; a migration takes a second and moves an entry of a list."""

    endpoint: Endpoint
    others: dict[str, Agent]
    chance: random.Random
    services: dict[str, ServiceStatus] = field(default_factory=dict)
    server: RpcServer | None = None

    async def start(self) -> None:
        handlers: dict[type[calls.Call], Any] = {
            calls.GetNode: self._node,
            calls.SetPeers: self._nothing,
            calls.ListServices: self._list,
            calls.InspectService: self._inspect,
            calls.Migrate: self._migrate,
        }
        self.server = RpcServer(handlers)
        port = await self.server.start(self.endpoint.host, 0)
        self.endpoint = replace(self.endpoint, port=port)

    async def _node(self, _: calls.GetNode, emit: EmitEvent) -> NodeStatus:
        used = 0.2 + 0.6 * self.chance.random()
        return NodeStatus(
            endpoint=self.endpoint,
            capabilities=Capabilities(whimbrel=__version__, machine="x86_64", kernel="6.18", criu="4.2", runc="1.1"),
            resources=Resources(
                cpus=8, load_1min=used, memory_total_bytes=64 << 30, memory_available_bytes=32 << 30,
                disk_available_bytes=300 << 30, disk_total_bytes=500 << 30, stage_available_bytes=8 << 30,
                cpu_capacity=8.0, cpus_used=8 * used, computing_power=400.0, memory_capacity_bytes=64 << 30,
                memory_used_bytes=int(used * (64 << 30)), network_received_bps=used * 4e8, network_sent_bps=used * 2e8,
            ),
            services=tuple(self.services),
        )  # fmt: skip

    async def _nothing(self, _: calls.SetPeers, emit: EmitEvent) -> None:
        return None

    async def _list(self, _: calls.ListServices, emit: EmitEvent) -> tuple[ServiceStatus, ...]:
        return tuple(self.services.values())

    async def _inspect(self, call: calls.InspectService, emit: EmitEvent) -> ServiceStatus:
        return self.services[call.name]

    async def _migrate(self, call: calls.Migrate, emit: EmitEvent) -> MigrationRecord:
        asked, begun_s = call.request, time.monotonic()
        lasts_ms = {"prepare": 150.0, "rounds": 700.0, "freeze": 40 + 30 * self.chance.random(), "switch": 4.0,
                    "finish": 200.0}  # fmt: skip
        phases, start_ms = [], 0.0
        for name, duration_ms in lasts_ms.items():
            for step in range(5):
                emit(Progress(migration=asked.id, phase=name, fraction=(step + 1) / 5))
                await asyncio.sleep(duration_ms / 5000)
            phases.append(Phase(name=name, start_ms=start_ms, duration_ms=duration_ms))
            start_ms += duration_ms
        status = self.services.pop(asked.service)
        there = self.others[call.destination.name]
        there.services[asked.service] = replace(status, node=there.endpoint.name)
        return MigrationRecord(
            id=asked.id, service=asked.service, source=self.endpoint.name, destination=there.endpoint.name,
            strategy="hybrid", outcome=Outcome.DONE, rss_bytes=200 << 20, bytes_sent=170 << 20,
            total_ms=(time.monotonic() - begun_s) * 1000, freeze_ms=lasts_ms["freeze"], phases=tuple(phases),
            rounds=(Round(n=1, dirty_pages=51200, bytes_sent=170 << 20, duration_ms=lasts_ms["rounds"]),),
        )  # fmt: skip


@dataclass
class Walker:
    """A user on its way from point to point."""

    name: str
    x_m: float
    y_m: float
    speed_m_per_s: float
    to: tuple[float, float]
    station: int
    number: int = 0


class Crowd:
    """`sites` sites with an edge server and a base station each, and `users` users that walk between them."""

    def __init__(self, users: int, sites: int, services: int, seed: int, directory: Path) -> None:
        self.chance = random.Random(seed)
        self.directory = directory
        columns = math.ceil(math.sqrt(sites * 1.6))
        self.places = [(site % columns * SPACING_M, site // columns * SPACING_M) for site in range(sites)]
        self.width_m = (columns - 1) * SPACING_M
        self.height_m = (sites - 1) // columns * SPACING_M
        self.agents: dict[str, Agent] = {}
        for site in range(sites):
            for role, name in ((Role.EDGE, f"edge-{site + 1}"), (Role.GATEWAY, f"cell-{site + 1}")):
                end = Endpoint(name=name, role=role, host="127.0.0.1", port=1,
                               overlay_host=f"127.{1 + (role is Role.EDGE)}.0.{site + 1}")  # fmt: skip
                self.agents[name] = Agent(end, self.agents, random.Random(f"{seed} {name}"))
        for number in range(services):
            self._add_service(number, f"edge-{number % sites + 1}")
        self.walkers = [self._walker(f"ue-{number + 1}") for number in range(users)]

    def _add_service(self, number: int, node: str) -> None:
        name = f"service-{number + 1}"
        spec = ServiceSpec(
            name=name, image="oci:/images/echo", address=f"10.77.{1 + number // 250}.{number % 250 + 1}/16"
        )
        self.agents[node].services[name] = ServiceStatus(
            spec=spec, node=node, state=ServiceState.RUNNING, pid=1, mac="02:77:0a:4d:01:01", image_digest="sha256:0"
        )

    def _point(self) -> tuple[float, float]:
        return self.chance.uniform(-80, self.width_m + 80), self.chance.uniform(-80, self.height_m + 80)

    def _walker(self, name: str) -> Walker:
        x_m, y_m = self._point()
        return Walker(name, x_m, y_m, self.chance.uniform(1, 14), self._point(), self._nearest(x_m, y_m))

    def _nearest(self, x_m: float, y_m: float) -> int:
        return min(range(len(self.places)), key=lambda site: math.dist(self.places[site], (x_m, y_m)))

    def config_text(self, port: int) -> str:
        text = f'listen = "tcp:127.0.0.1:{port}"\nstate_dir = "{self.directory}"\naddress_pool = "10.77.1.0/16"\n'
        for site, (x_m, y_m) in enumerate(self.places):
            for name in (f"edge-{site + 1}", f"cell-{site + 1}"):
                end = self.agents[name].endpoint
                text += (
                    f'\n[[nodes]]\nname = "{name}"\nrole = "{end.role.value}"\nhost = "{end.host}"\nport = {end.port}\n'
                )
                text += f'overlay_host = "{end.overlay_host}"\nx_m = {x_m:.1f}\ny_m = {y_m:.1f}\n'
            text += f'\n[[base_stations]]\nname = "cell-{site + 1}"\nx_m = {x_m:.1f}\ny_m = {y_m:.1f}\n'
            text += f'reach_m = {REACH_M}\nzone = "zone-{site % 4 + 1}"\n'
        return text

    def step(self, walker: Walker, passed_s: float) -> HandoverRecord | None:
        """Go on; the handover when another base station has become nearer."""
        away_m = math.dist((walker.x_m, walker.y_m), walker.to)
        share = min(1.0, walker.speed_m_per_s * passed_s / max(away_m, 1e-9))
        walker.x_m += (walker.to[0] - walker.x_m) * share
        walker.y_m += (walker.to[1] - walker.y_m) * share
        if share == 1.0:
            walker.to = self._point()
        here = (walker.x_m, walker.y_m)
        nearest = self._nearest(*here)
        if math.dist(self.places[nearest], here) + HYSTERESIS_M > math.dist(self.places[walker.station], here):
            return None
        before, walker.station = walker.station, nearest
        return HandoverRecord(
            user=walker.name, source=f"cell-{before + 1}", target=f"cell-{nearest + 1}", reason="nearer",
            unix_s=time.time(), elapsed_s=time.monotonic(), interruption_ms=50.0,
        )  # fmt: skip

    def report(self, walker: Walker) -> UserReport:
        walker.number += 1
        away_m = math.dist(self.places[walker.station], (walker.x_m, walker.y_m))
        rssi_dbm = -40 - 25 * math.log10(max(1.0, away_m / 10)) + self.chance.gauss(0, 1)
        delay_ms = 6 + away_m / 20 + abs(self.chance.gauss(0, 1))
        return UserReport(
            user=walker.name, number=walker.number, unix_s=time.time(), elapsed_s=time.monotonic(), x_m=walker.x_m,
            y_m=walker.y_m, speed_m_per_s=walker.speed_m_per_s, serving=f"cell-{walker.station + 1}",
            state=LinkState.CONNECTED,
            hears=(Hears(base_station=f"cell-{walker.station + 1}", rssi_dbm=rssi_dbm, filtered_dbm=rssi_dbm),),
            delay=DelayFigures(requests=1, lost=0, mean_ms=delay_ms, p50_ms=delay_ms, max_ms=delay_ms),
        )  # fmt: skip

    async def walk(self, controller: Controller, every_s: float) -> None:
        """All users report `1 / every_s` times a second, a quarter of them at a time."""
        parts = [self.walkers[number::4] for number in range(4)]
        turn, next_s = 0, time.monotonic()
        while True:
            for walker in parts[turn % 4]:
                handover = self.step(walker, every_s)
                if handover is not None:
                    controller.planning.take(walker.name, handover)
                controller.planning.take(walker.name, self.report(walker))
            turn += 1
            next_s = max(next_s + every_s / 4, time.monotonic() - every_s)
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))

    async def move(self, controller: Controller, every_s: float) -> None:
        """A migration every so often, from any edge to any other."""
        await asyncio.sleep(EARLIEST_MIGRATION_S)
        edges = [agent for agent in self.agents.values() if agent.endpoint.role is Role.EDGE]
        while True:
            source, there = self.chance.sample(edges, 2)
            if source.services:
                request = MigrationRequest(
                    id="", service=self.chance.choice(list(source.services)), destination=there.endpoint.name,
                    strategy="auto",
                )  # fmt: skip
                await controller.migrations.start(request, "made up")
            await asyncio.sleep(every_s)

    async def serve(self, every_s: float, move_every_s: float) -> None:
        for agent in self.agents.values():
            await agent.start()
        config = parse(self.config_text(1))
        listener = open_listener(replace(config.listen, port=0))
        address, port = listener.getsockname()[:2]
        controller = Controller(parse(self.config_text(port)))
        server = uvicorn.Server(
            uvicorn.Config(create_app(controller), log_level="warning", access_log=False, lifespan="on",
                           timeout_graceful_shutdown=1)
        )  # fmt: skip
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        await controller.planning.set(replace(controller.planning.setting, paused=True))  # it is not what is measured
        work = [asyncio.create_task(self.walk(controller, every_s))]
        if move_every_s:
            work.append(asyncio.create_task(self.move(controller, move_every_s)))
        print(f"http://{address}:{port}/", flush=True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, server, "should_exit", True)
        try:
            await asyncio.wait([serving, *work], return_when=asyncio.FIRST_COMPLETED)
            for task in work:
                if task.done():
                    task.result()
        finally:
            for task in work:
                task.cancel()
            server.should_exit = True
            controller.end_streams()
            await serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--sites", type=int, default=25)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--report-every", type=float, default=0.5, metavar="SECONDS")
    parser.add_argument("--move-every", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    crowd = Crowd(told.users, told.sites, told.services, told.seed, told.directory)
    asyncio.run(crowd.serve(told.report_every, told.move_every))


if __name__ == "__main__":
    main()
