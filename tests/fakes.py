"""In-memory agents that speak the real agent protocol: same calls, same errors, no containers.

`tests/controller/test_contract.py` runs one suite against these and against real agents, so that they cannot
drift apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any

from msgspec.structs import replace

from whimbrel import __version__
from whimbrel.model.errors import BadInput, Cancelled, Conflict, Refused, WhimbrelError
from whimbrel.model.migration import MigrationRecord, Outcome, Phase, Progress, Round
from whimbrel.model.node import (
    Capabilities,
    ComputingPower,
    Endpoint,
    NodeStatus,
    PathStatus,
    Resources,
    Role,
    ServiceUse,
)
from whimbrel.model.service import ExecResult, ImageInfo, ServiceProbe, ServiceState, ServiceStatus
from whimbrel.model.volume import VolumeInfo
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, RpcServer

PROBED_DELTA_BYTES = 333 << 12
FINDING = (calls.GetNode, calls.SetPeers, calls.ListServices, calls.ListImages, calls.ListVolumes)


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = (20_000 + _WORKER % 6 * 2000 + n % 2000 for n in itertools.count(os.getpid()))
"""Each worker has its own, and the kernel gives none of them away: a connection that goes out somewhere may have taken
one that was free a moment ago."""


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("they never end")


class FakeAgent:
    """One agent. `refuse_migration`: raised by `Migrate`; `fails`: raised by all calls but those by which the
    controller finds services."""

    def __init__(self, name: str, role: Role, region: FakeRegion) -> None:
        self.endpoint = Endpoint(
            name=name,
            role=role,
            host="127.0.0.1",
            port=free_port(),
            overlay_host=f"127.0.1.{len(region.agents) + 1}",
        )
        self.services: dict[str, ServiceStatus] = {}
        self.power = ComputingPower(events_per_s=400.0, measured_unix_s=0.0, machine="m")
        self.peers: list[tuple[Endpoint, ...]] = []
        self.requests: list[calls.Migrate] = []
        self.records: dict[str, MigrationRecord] = {}
        self.freezes: list[calls.MoveFreeze] = []
        self.ready = True  # as soon as a migration has begun
        self.refuse_migration: WhimbrelError | None = None
        self.fails: WhimbrelError | None = None
        self.paths = (PathStatus(to="elsewhere", round_trip_ms=12.5, measured_unix_s=1.0, rate_bps=75e6),)
        self.silent = False  # it is connected, and does not answer
        self._region = region
        self._server: RpcServer | None = None
        self._cancelled: set[str] = set()

    async def start(self) -> None:
        handlers: dict[type[Any], Any] = {
            calls.GetNode: self._node,
            calls.MeasurePower: self._measure_power,
            calls.SetPeers: self._set_peers,
            calls.RunService: self._run,
            calls.ListServices: self._list,
            calls.InspectService: self._inspect,
            calls.RemoveService: self._remove,
            calls.ServiceLogs: self._logs,
            calls.ExecInService: self._exec,
            calls.ProbeService: self._probe,
            calls.Migrate: self._migrate,
            calls.CancelMigration: self._cancel,
            calls.MoveFreeze: self._move_freeze,
            calls.ResolveMigration: self._resolve,
            calls.GetMigration: self._get,
            calls.AdoptService: self._adopt,
            calls.ReleaseService: self._release,
            calls.ListVolumes: self._volumes,
            calls.RemoveVolume: self._remove_volume,
            calls.ListImages: self._images,
            calls.PushImage: self._push_image,
        }
        self._server = RpcServer({kind: self._unless_failing(kind, handle) for kind, handle in handlers.items()})
        await self._server.start(self.endpoint.host, self.endpoint.port)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()
            self._server = None

    def _unless_failing(self, kind: type[Any], handle: Any) -> Any:
        async def answer(call: Any, emit: EmitEvent) -> Any:
            if self.fails is not None and kind not in FINDING:
                raise self.fails
            return await handle(call, emit)

        return answer

    def _known(self, name: str) -> ServiceStatus:
        if name not in self.services:
            raise BadInput(f"there is no service {name!r} on {self.endpoint.name}")
        return self.services[name]

    async def _node(self, _: calls.GetNode, emit: EmitEvent) -> NodeStatus:
        while self.silent:
            await asyncio.sleep(0.02)
        return NodeStatus(
            endpoint=self.endpoint,
            capabilities=Capabilities(
                whimbrel=__version__, machine="x86_64", kernel="6.18", criu="4.2.1", runc="1.1.5"
            ),
            resources=Resources(
                cpus=2, load_1min=0.5, memory_total_bytes=8 << 30, memory_available_bytes=4 << 30,
                disk_available_bytes=100 << 30, stage_available_bytes=4 << 30, cpu_capacity=1.5, cpus_used=0.25,
                computing_power=self.power.events_per_s, memory_capacity_bytes=8 << 30, network_capacity_bps=1e9,
            ),
            services=tuple(sorted(self.services)),
            service_use=tuple(ServiceUse(name=name, cpus_used=0.25, memory_bytes=20 << 20) for name in self.services),
            paths=self.paths,
        )  # fmt: skip

    async def _measure_power(self, _: calls.MeasurePower, emit: EmitEvent) -> ComputingPower:
        self.power = ComputingPower(events_per_s=self.power.events_per_s + 1, measured_unix_s=time.time(), machine="m")
        return self.power

    async def _set_peers(self, call: calls.SetPeers, _: EmitEvent) -> None:
        self.peers.append(call.peers)

    async def _run(self, call: calls.RunService, _: EmitEvent) -> ServiceStatus:
        if not call.spec.image.startswith(("oci:", "oci-archive:", "rootfs:")):
            raise BadInput(f"image {call.spec.image!r} is no reference: write oci:PATH")
        self._region.starting.add(call.spec.name)
        while not self._region.may_start.is_set():
            await asyncio.sleep(0.01)
        status = ServiceStatus(
            spec=call.spec,
            node=self.endpoint.name,
            state=ServiceState.RUNNING,
            pid=4242,
            mac="02:77:0a:4d:01:01",
            image_digest="sha256:0",
            rss_bytes=20 << 20,
            processes=1,
            started_unix_s=time.time(),
        )
        self.services[call.spec.name] = status
        return status

    async def _list(self, _: calls.ListServices, emit: EmitEvent) -> tuple[ServiceStatus, ...]:
        return tuple(self.services.values())

    async def _inspect(self, call: calls.InspectService, _: EmitEvent) -> ServiceStatus:
        return self._known(call.name)

    async def _remove(self, call: calls.RemoveService, _: EmitEvent) -> None:
        self._known(call.name)
        del self.services[call.name]

    async def _adopt(self, call: calls.AdoptService, emit: EmitEvent) -> ServiceStatus:
        return await self._run(calls.RunService(spec=replace(call.spec, image="oci:/adopted")), emit)

    async def _release(self, call: calls.ReleaseService, _: EmitEvent) -> None:
        self._known(call.name)
        del self.services[call.name]

    async def _volumes(self, _: calls.ListVolumes, emit: EmitEvent) -> tuple[VolumeInfo, ...]:
        return ()

    async def _remove_volume(self, call: calls.RemoveVolume, _: EmitEvent) -> None:
        raise BadInput(f"there is no volume {call.service}/{call.name} on {self.endpoint.name}")

    async def _images(self, _: calls.ListImages, emit: EmitEvent) -> tuple[ImageInfo, ...]:
        name = self.endpoint.name
        return (ImageInfo(digest=f"sha256:{name}", node=name, reference=f"oci:/{name}", size_bytes=1),)

    async def _push_image(self, call: calls.PushImage, _: EmitEvent) -> int:
        return 1

    async def _logs(self, call: calls.ServiceLogs, _: EmitEvent) -> str:
        self._known(call.name)
        return "line one\nline two\n"[-call.tail_bytes :]

    async def _exec(self, call: calls.ExecInService, _: EmitEvent) -> ExecResult:
        """Runs the command here: there is no container to run it in."""
        if self._region.harmless:
            return ExecResult(exit_code=0, stdout="", stderr="")
        if self._known(call.name).state is ServiceState.MIGRATING:
            raise Conflict(f"service {call.name} is being migrated: wait until that is over")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*call.argv, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
        return ExecResult(exit_code=process.returncode or 0, stdout=out.decode(), stderr=err.decode())

    async def _probe(self, call: calls.ProbeService, _: EmitEvent) -> ServiceProbe:
        if self._known(call.name).state is not ServiceState.RUNNING:
            raise Refused(f"{call.name} is not running: only a running service can be probed")
        return ServiceProbe(
            service=call.name, node=self.endpoint.name, interval_s=call.interval_s,
            checkpoint_bytes=64 << 20, delta_bytes=PROBED_DELTA_BYTES,
        )  # fmt: skip

    async def _get(self, call: calls.GetMigration, _: EmitEvent) -> MigrationRecord | None:
        return self.records.get(call.id)

    async def _migrate(self, call: calls.Migrate, emit: EmitEvent) -> MigrationRecord:
        record = self.records[call.request.id] = await self._carry_out(call, emit)
        return record

    async def _carry_out(self, call: calls.Migrate, emit: EmitEvent) -> MigrationRecord:
        self.requests.append(call)
        request = call.request
        status = self._known(request.service)
        if self.refuse_migration is not None:
            raise self.refuse_migration
        record = MigrationRecord(
            id=request.id,
            service=request.service,
            source=self.endpoint.name,
            destination=call.destination.name,
            strategy=request.strategy,
            outcome=Outcome.DONE,
            rss_bytes=status.rss_bytes,
            total_ms=321.0,
            freeze_ms=45.5,
            bytes_sent=21 << 20,
            phases=(Phase(name="rounds", start_ms=0.0, duration_ms=200.0),),
            raw_bytes=5120 << 12,
            rounds=(
                Round(
                    n=1,
                    dirty_pages=5120,
                    bytes_sent=8 << 20,
                    duration_ms=100.0,
                    raw_bytes=5120 << 12,
                    zero_pages=77,
                    codec="zstd 60 %, raw 40 %",
                ),
            ),
        )
        if request.dry_run:
            return replace(record, outcome=Outcome.DRY_RUN, phases=(), rounds=())
        self.records[request.id] = replace(record, outcome=Outcome.RUNNING, phases=(), rounds=())
        self.services[request.service] = replace(status, state=ServiceState.MIGRATING)
        emit(Progress(migration=request.id, phase="prepare"))
        emit(Progress(migration=request.id, phase="rounds", detail="round 1", fraction=0.5, ready=self.ready))
        try:
            while not self._region.go.is_set():
                if request.id in self._cancelled:
                    raise Cancelled("cancelled on request")
                await asyncio.sleep(0.01)
        except Cancelled as error:
            self.services[request.service] = status
            return replace(
                record,
                outcome=Outcome.CANCELLED,
                error=str(error),
                error_code=error.code,
                phases=(),
                rounds=(),
            )
        emit(Progress(migration=request.id, phase="freeze"))
        del self.services[request.service]
        destination = self._region.agents[call.destination.name]
        destination.services[request.service] = replace(
            status, node=destination.endpoint.name, migrations=status.migrations + 1
        )
        return record

    async def _cancel(self, call: calls.CancelMigration, _: EmitEvent) -> bool:
        if not any(one.request.id == call.id for one in self.requests) or self._region.go.is_set():
            return False
        self._cancelled.add(call.id)
        return True

    async def _move_freeze(self, call: calls.MoveFreeze, _: EmitEvent) -> bool:
        self.freezes.append(call)
        return not self._region.go.is_set()

    async def _resolve(self, call: calls.ResolveMigration, _: EmitEvent) -> bool:
        return False  # no destination is ever away here


class FakeRegion:
    """Agents on loopback, served from a thread of their own. Migrations wait while `go` is not set."""

    def __init__(self, gateways: tuple[str, ...] = ("gw-1",)) -> None:
        self.harmless = False  # nothing is run that `exec` asks for
        self.go = threading.Event()
        self.go.set()
        self.may_start = threading.Event()  # services wait for it
        self.may_start.set()
        self.starting: set[str] = set()  # names of services that an agent was told to run
        self.agents: dict[str, FakeAgent] = {}
        for name in ("edge-1", "edge-2", "edge-3"):
            self.agents[name] = FakeAgent(name, Role.EDGE, self)
        for name in gateways:
            self.agents[name] = FakeAgent(name, Role.GATEWAY, self)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FakeRegion:
        self._thread.start()
        for name in self.agents:
            self.up(name)
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.may_start.set()
        for name in self.agents:
            self.down(name)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def up(self, name: str) -> None:
        self._do(self.agents[name].start())

    def down(self, name: str) -> None:
        self._do(self.agents[name].stop())

    def reset(self) -> None:
        """No services, no grudges; all agents answer."""
        self.go.set()
        self.may_start.set()
        for name, agent in self.agents.items():
            agent.services.clear()
            agent.requests.clear()
            agent.freezes.clear()
            agent.ready = True
            agent.records.clear()
            agent.refuse_migration = agent.fails = None
            agent.silent = False
            if agent._server is None:
                self.up(name)

    def config_text(self, listen: str, state_dir: str) -> str:
        text = f'listen = "{listen}"\nstate_dir = "{state_dir}"\naddress_pool = "10.77.1.0/16"\n'
        for agent in self.agents.values():
            end = agent.endpoint
            text += f'\n[[nodes]]\nname = "{end.name}"\nrole = "{end.role}"\nhost = "{end.host}"\n'
            text += f'port = {end.port}\noverlay_host = "{end.overlay_host}"\n'
        for number, agent in enumerate(one for one in self.agents.values() if one.endpoint.role is Role.GATEWAY):
            text += f'\n[[base_stations]]\nname = "{agent.endpoint.name}"\nx_m = {10.0 + 100 * number}\ny_m = 20.0\n'
            text += 'reach_m = 250.0\nzone = "north"\n'
        return text

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
