"""`whimbrel bench api`: how soon the controller's API answers under load.

A real controller, in front of agents that speak the real protocol and have no containers, with users that report and
pages that follow the events. Requests are sent when their time has come, whether or not earlier ones were answered, and
a delay counts from that time: an API that stands still cannot hide it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from whimbrel import __version__
from whimbrel.bench import table
from whimbrel.bench.report import FAIL, PASS, machine
from whimbrel.client.outage import quantile
from whimbrel.controller.database import parse_database
from whimbrel.controller.migrations import new_id
from whimbrel.controller.store import MigrationStore
from whimbrel.model.errors import StepFailed
from whimbrel.model.migration import MigrationRecord, Outcome, Phase, Round
from whimbrel.model.node import Capabilities, Endpoint, NodeStatus, PathStatus, Resources, Role, ServiceUse
from whimbrel.model.radio import DelayFigures, Hears, LinkState, UserReport
from whimbrel.model.service import ServiceSpec, ServiceState, ServiceStatus
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, RpcServer

PROMISED_P99_MS = 50.0
RATE_PER_S = 200
NODES, GATEWAYS = 50, 10
USERS = 1000
RECORDS = 300
LISTENERS = 2
WARM_UP_S = 3.0
IDLE_S = 2.0
"""A connection that rested longer is not used again: the server ends those that rest for 5 s."""
START_TIMEOUT_S = 60.0
REPORT = "POST /v1/users/{user}/events"
MIX = (
    (REPORT, 40), ("GET /v1/region", 10), ("GET /v1/nodes", 8), ("GET /v1/services", 8),
    ("GET /v1/users", 8), ("GET /v1/migrations?limit=20", 8), ("GET /v1/decisions?limit=20", 5),
    ("GET /v1/log", 5), ("GET /metrics", 1), ("GET /v1/health", 7),
)  # fmt: skip
"""Requests and their weights: four of ten are users', the rest what pages, operators and Prometheus ask for."""
HEADINGS = ("what", "n", "p50", "p99", "worst")


# --- agents without containers ------------------------------------------------------------------------------
def _agents(nodes: int, ready: Connection) -> None:
    """In a process of its own: what they cost is not the controller's, nor the client's."""
    asyncio.run(_serve_agents(nodes, ready))


async def _serve_agents(nodes: int, ready: Connection) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    ends, servers = [], []
    for number in range(nodes):
        role = Role.GATEWAY if number < GATEWAYS else Role.EDGE
        name = f"gw-{number}" if role is Role.GATEWAY else f"edge-{number}"
        agent = _Agent(name, role, number)
        server = RpcServer({calls.GetNode: agent.node, calls.SetPeers: agent.peers, calls.ListServices: agent.services})
        port = await server.start("127.0.0.1", 0)
        servers.append(server)
        ends.append(Endpoint(name=name, role=role, host="127.0.0.1", port=port, overlay_host=_tunnel(number)))
    ready.send_bytes(msgspec.json.encode(ends))
    await stopped.wait()
    for server in servers:
        await server.close()


def _tunnel(number: int) -> str:
    return f"127.1.{number // 250}.{number % 250 + 1}"


class _Agent:
    def __init__(self, name: str, role: Role, number: int) -> None:
        endpoint = Endpoint(name=name, role=role, host="127.0.0.1", port=1, overlay_host=_tunnel(number))
        spec = ServiceSpec(name=f"service-{number}", image="oci:/none", address=f"10.77.2.{number + 1}/16")
        running = ServiceStatus(
            spec=spec, node=name, state=ServiceState.RUNNING, pid=1, mac="02:77:00:00:00:01", image_digest="sha256:0"
        )
        self._services = (running,) if role is Role.EDGE else ()
        self._status = NodeStatus(
            endpoint=endpoint,
            capabilities=Capabilities(
                whimbrel=__version__, machine="x86_64", kernel="6.1", criu="4", runc="1", cpu_features=("avx2",) * 60
            ),
            resources=Resources(
                cpus=8, load_1min=0.5, memory_total_bytes=8 << 30, memory_available_bytes=4 << 30,
                disk_available_bytes=100 << 30, stage_available_bytes=4 << 30, cpu_capacity=8.0, cpus_used=0.5,
                computing_power=400.0, memory_capacity_bytes=8 << 30, network_capacity_bps=1e9,
            ),
            services=tuple(one.spec.name for one in self._services),
            service_use=tuple(ServiceUse(name=one.spec.name, cpus_used=0.1, memory_bytes=1 << 24)
                              for one in self._services),
            paths=tuple(PathStatus(to=f"gw-{other}", round_trip_ms=1.0) for other in range(GATEWAYS)),
        )  # fmt: skip

    async def node(self, _: calls.GetNode, emit: EmitEvent) -> NodeStatus:
        return self._status

    async def peers(self, _: calls.SetPeers, emit: EmitEvent) -> None:
        return None

    async def services(self, _: calls.ListServices, emit: EmitEvent) -> tuple[ServiceStatus, ...]:
        return self._services


# --- the region ---------------------------------------------------------------------------------------------
@contextmanager
def _region(nodes: int) -> Iterator[Path]:
    """The socket of a controller that answers; all of it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-bench-") as name:
        directory = Path(name)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        agents = context.Process(target=_agents, args=(nodes, there), daemon=True)
        agents.start()
        controller: subprocess.Popen[bytes] | None = None
        try:
            if not here.poll(START_TIMEOUT_S):
                raise StepFailed("the benchmark's agents did not start")
            ends = msgspec.json.decode(here.recv_bytes(), type=list[Endpoint])
            config = directory / "controller.toml"
            config.write_text(_config(directory, ends))
            _fill(directory)
            with (directory / "log").open("wb") as log:
                controller = subprocess.Popen(
                    [sys.executable, "-m", "whimbrel", "controller", "--config", str(config)], stderr=log
                )
            _wait_for(directory / "c.sock", controller, directory / "log")
            yield directory / "c.sock"
        finally:
            if controller is not None:
                controller.terminate()
                controller.wait(30)
            agents.terminate()
            agents.join(30)


def _config(directory: Path, ends: list[Endpoint]) -> str:
    text = f'listen = "unix:{directory}/c.sock"\nstate_dir = "{directory}/state"\n'
    for number, end in enumerate(ends):
        text += f'\n[[nodes]]\nname = "{end.name}"\nrole = "{end.role}"\nhost = "{end.host}"\nport = {end.port}\n'
        text += f'overlay_host = "{end.overlay_host}"\nx_m = {100.0 * number}\ny_m = 0.0\n'
    return text


def _fill(directory: Path) -> None:
    """Migrations that were, so that there is something to look back on."""
    store = MigrationStore(parse_database("", directory / "state/controller.sqlite3"))
    try:
        now_s = time.time()
        for number in range(RECORDS):
            at_s = now_s - 60.0 * (RECORDS - number)
            phases = tuple(Phase(name=name, start_ms=0.0, duration_ms=50.0) for name in ("prepare", "rounds", "freeze"))
            rounds = tuple(Round(n=n, dirty_pages=900, bytes_sent=1 << 20, duration_ms=40.0) for n in range(4))
            store.put(
                MigrationRecord(
                    id=new_id(at_s), service=f"service-{number % NODES}", source="edge-10", destination="edge-11",
                    strategy="hybrid", outcome=Outcome.DONE, started_unix_s=at_s, total_ms=900.0, freeze_ms=40.0,
                    rss_bytes=20 << 20, bytes_sent=8 << 20, phases=phases, rounds=rounds,
                )
            )  # fmt: skip
    finally:
        store.close()


def _wait_for(path: Path, controller: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not _answers(path):
        if controller.poll() is not None or time.monotonic() > deadline_s:
            lines = log.read_text().strip().splitlines() or ["it said nothing"]
            raise StepFailed(f"the benchmark's controller did not start: {lines[-1]}")
        time.sleep(0.05)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


# --- the load -----------------------------------------------------------------------------------------------
@dataclass
class _Load:
    path: Path
    delays_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[int] = field(default_factory=Counter)
    events: int = 0
    _free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = field(default_factory=list)

    async def ask(self, what: str, user: int, body: bytes, due_s: float, counts: bool) -> None:
        """One request on a connection that is free, or a new one."""
        method, _, path = what.replace("{user}", f"user-{user}").partition(" ")
        reader, writer = await self._connection()
        head = f"{method} {path} HTTP/1.1\r\nHost: controller\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(int(line.split(":")[1]) for line in answer.split("\r\n") if line.startswith("content-length:"))
        await reader.readexactly(length)
        took_ms = (time.perf_counter() - due_s) * 1e3
        self._free.append((reader, writer, time.monotonic()))
        if counts:
            self.statuses[int(answer.split(" ", 2)[1])] += 1
            self.delays_ms[what].append(took_ms)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer, since_s = self._free.pop()
            if time.monotonic() - since_s < IDLE_S:
                return reader, writer
            writer.close()
        return await asyncio.open_unix_connection(str(self.path))

    async def listen(self) -> None:
        """A page that follows the events."""
        reader, writer = await asyncio.open_unix_connection(str(self.path), limit=1 << 24)
        try:
            writer.write(b"GET /v1/events HTTP/1.1\r\nHost: controller\r\n\r\n")
            while line := await reader.readline():
                self.events += line.startswith(b"event:")
        finally:
            writer.close()

    def close(self) -> None:
        for _, writer, _ in self._free:
            writer.close()


def _report(number: int, user: int) -> bytes:
    at = f"gw-{user % GATEWAYS}"
    heard = tuple(
        Hears(base_station=f"gw-{(user + step) % GATEWAYS}", rssi_dbm=-50.0 - 9 * step, filtered_dbm=-50.0 - 9 * step)
        for step in range(3)
    )
    return msgspec.json.encode(
        UserReport(
            user=f"user-{user}", number=number, unix_s=time.time(), elapsed_s=1.0, x_m=float(user), y_m=number % 100,
            speed_m_per_s=1.0, serving=at, state=LinkState.CONNECTED, hears=heard,
            delay=DelayFigures(requests=5, lost=0, mean_ms=5.0, p50_ms=5.0, max_ms=9.0),
        )
    )  # fmt: skip


async def _measure(path: Path, rate_per_s: float, seconds: float, users: int) -> _Load:
    load = _Load(path)
    listeners = [asyncio.create_task(load.listen()) for _ in range(LISTENERS)]
    chance = random.Random(1)
    kinds, weights = [kind for kind, _ in MIX], [weight for _, weight in MIX]
    asked: list[asyncio.Task[None]] = []
    try:
        for user in range(users):  # all of them are there from the beginning
            await load.ask(REPORT, user, _report(0, user), time.perf_counter(), False)
        begin_s = time.perf_counter()
        total = int((WARM_UP_S + seconds) * rate_per_s)
        for number in range(total):
            due_s = begin_s + number / rate_per_s
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            kind = chance.choices(kinds, weights)[0]
            counts = number >= WARM_UP_S * rate_per_s
            user = chance.randrange(users)
            body = _report(number, user) if kind.startswith("POST") else b""
            asked.append(asyncio.create_task(load.ask(kind, user, body, due_s, counts)))
        await asyncio.wait_for(asyncio.gather(*asked), 60)
        if not load.events:
            raise StepFailed("nobody was told of any event")
        return load
    finally:
        for task in (*listeners, *asked):
            task.cancel()
        await asyncio.gather(*listeners, *asked, return_exceptions=True)
        load.close()


def run(
    console: Console, *, rate_per_s: float = RATE_PER_S, seconds: float = 30.0, nodes: int = NODES, users: int = USERS
) -> dict[str, Any]:
    """Prints a table with a verdict; returns what `--json` writes. Raises StepFailed."""
    with _region(nodes) as path:
        try:
            load = asyncio.run(_measure(path, rate_per_s, seconds, users))
        except (OSError, EOFError, TimeoutError) as error:
            raise StepFailed(f"the controller did not stand the load: {type(error).__name__}: {error}") from error
    every = [delay for delays in load.delays_ms.values() for delay in delays]
    summary = [*(_row(kind, load.delays_ms[kind]) for kind, _ in MIX if load.delays_ms[kind]), _row("all", every)]
    said = verdict(summary[-1]["p99_ms"], load.statuses)
    result = {
        "machine": machine(),
        "parameters": {"rate_per_s": rate_per_s, "seconds": seconds, "nodes": nodes, "users": users,
                       "listeners": LISTENERS, "records": RECORDS},
        "runs": [{"request": kind, "delays_ms": [round(one, 3) for one in load.delays_ms[kind]]} for kind, _ in MIX],
        "summary": summary,
        "statuses": {str(status): count for status, count in sorted(load.statuses.items())},
        "events": load.events,
        "verdict": said,
    }  # fmt: skip
    table.show(console, HEADINGS, [
        (row["request"], str(row["n"]), *(table.ms(row[key]) for key in ("p50_ms", "p99_ms", "worst_ms")))
        for row in summary
    ])  # fmt: skip
    console.print(f"{rate_per_s:g} requests/s, {nodes} nodes, {users} users, {LISTENERS} pages: {said}")
    return result


def verdict(p99_ms: float, statuses: Counter[int]) -> str:
    """PASS, or FAIL with what does not hold: the 99th percentile of all delays, and that all were answered well."""
    wrong = {status: count for status, count in statuses.items() if status >= 400}
    if wrong:
        return f"{FAIL}: answered with {', '.join(f'{status} ({count})' for status, count in sorted(wrong.items()))}"
    if p99_ms > PROMISED_P99_MS:
        return f"{FAIL}: p99 {p99_ms:.1f} ms, promised {PROMISED_P99_MS:g} ms"
    return f"{PASS}: p99 {p99_ms:.1f} ms <= {PROMISED_P99_MS:g} ms"


def _row(kind: str, delays_ms: list[float]) -> dict[str, Any]:
    return {
        "request": kind,
        "n": len(delays_ms),
        "p50_ms": round(quantile(delays_ms, 0.5), 3),
        "p99_ms": round(quantile(delays_ms, 0.99), 3),
        "worst_ms": round(max(delays_ms), 3),
    }
