"""Guests: containers of other engines (Docker, LXC …) that are services here. The engine keeps them, Whimbrel plugs its
network into them and moves them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from whimbrel.agent.place import Place, Record
from whimbrel.agent.threads import in_thread
from whimbrel.memory.processes import ns_pid_of, tree_of
from whimbrel.model.errors import BadInput, Refused, WhimbrelError
from whimbrel.model.service import EngineKind, ExecResult, ServiceSpec, ServiceState, ServiceStatus
from whimbrel.network.names import interface
from whimbrel.network.port import PortInfo, ServicePort
from whimbrel.network.sockets import foreign_address
from whimbrel.runtime.adopt import adopt, find_restored, is_placeholder
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.engines.base import Arrival, Engine, EngineAway, Guest
from whimbrel.runtime.logger import add_log_segments, tail
from whimbrel.runtime.mounts import drop_clones
from whimbrel.runtime.moving import Departure
from whimbrel.runtime.runc import process_start_ticks

log = structlog.get_logger()
_OTHER_NODE = "or choose a node whose `whimbrel check` finds {kind} in order"
VISITORS_S = 5.0  # how long a `docker exec` or a health check may take to end by itself


class Guests:
    """All engines of one node. What blocks runs in a thread."""

    def __init__(self, node: str, port: ServicePort, gateway: str, engines: Mapping[EngineKind, Engine]) -> None:
        self._node, self._port, self._gateway, self._engines = node, port, gateway, engines

    def engine(self, kind: EngineKind) -> Engine:
        engine = self._engines.get(kind)
        if engine is None:
            known = ", ".join(sorted(self._engines)) or "none"
            raise BadInput(f"{self._node} knows no engine {kind}: it knows {known}")
        return engine

    async def look(self, kind: EngineKind, container: str) -> Guest:
        """`Engine.look`; an engine that is away is refused with those that answer here."""
        engine = self.engine(kind)
        try:
            await engine.answers()
            return await engine.look(container)
        except EngineAway as error:
            others = [str(other) for other in self._engines if other is not kind and await self._answers(other)]
            here = f"{' and '.join(others)} can be had here" if others else "no other engine can be had here"
            raise Refused(f"{self._node}: {error}; {here}, {_OTHER_NODE.format(kind=kind)}") from error

    async def offer(self, kind: EngineKind, description: bytes) -> None:
        """`Engine.offer`: a container stays with its kind of engine, so another node is the way out."""
        engine = self.engine(kind)
        try:
            await engine.answers()
            await engine.offer(description)
        except EngineAway as error:
            raise Refused(f"{self._node}: {error}; {_OTHER_NODE.format(kind=kind)}") from error

    async def _answers(self, kind: EngineKind) -> bool:
        try:
            await self._engines[kind].answers()
        except WhimbrelError:
            return False
        return True

    # --- adopt --------------------------------------------------------------------------------------------
    async def adopt(self, spec: ServiceSpec, guest: Guest, place: Place) -> Record:
        """Plug the overlay into a running container. The container is left as it was when that fails."""
        netns = Path(f"/proc/{guest.pid}/ns/net")
        if netns.stat().st_ino == os.stat("/proc/self/ns/net").st_ino:
            raise Refused(f"container {guest.container} lives in the network of the host: give it one of its own")
        spec = msgspec.structs.replace(spec, image=guest.image)
        status = ServiceStatus(
            spec=spec,
            node=self._node,
            state=ServiceState.STARTING,
            pid=guest.pid,
            mac="",
            image_digest=guest.image_digest,
            started_unix_s=time.time(),
            container=guest.container,
        )
        async with contextlib.AsyncExitStack() as undo:
            await in_thread(place.create)
            undo.push_async_callback(self.release, place)
            await in_thread(place.save, Record(status=status))
            port = await in_thread(self._make_port, spec, netns)
            await in_thread(self._port.open, spec.name)
            await in_thread(self._port.announce, spec.name)
            status = msgspec.structs.replace(status, state=ServiceState.RUNNING, mac=port.mac, interface=port.interface)
            record = Record(status=status, guest=guest, since_ns=time.time_ns())
            await in_thread(place.save, record)
            undo.pop_all()
        return record

    async def plug_again(self, record: Record, place: Place) -> Record:
        """The container runs anew, in a network namespace that knows nothing of us. Raises WhimbrelError while it does
        not run."""
        guest = await self.engine(record.status.spec.engine).look(record.status.container)
        name = record.status.spec.name
        await in_thread(self._port.remove, name)
        netns = Path(f"/proc/{guest.pid}/ns/net")
        port = await in_thread(self._make_port, record.status.spec, netns, record.status.interface)
        await in_thread(self._port.open, name)
        await in_thread(self._port.announce, name)
        status = msgspec.structs.replace(record.status, pid=guest.pid, interface=port.interface)
        record = msgspec.structs.replace(record, status=status, guest=guest)
        await in_thread(place.save, record)
        return record

    def _make_port(self, spec: ServiceSpec, inside: Path | None, name: str = "") -> PortInfo:
        return self._port.create(spec.name, spec.address, self._gateway or None, inside=inside, name=name)

    async def release(self, place: Place) -> None:
        """Forget the container, which runs on in its engine without the overlay."""
        async with contextlib.AsyncExitStack() as steps:
            steps.push_async_callback(in_thread, place.remove_files)
            steps.push_async_callback(in_thread, drop_clones, place.clones)
            steps.push_async_callback(in_thread, self._port.remove, place.name)

    async def discard(self, place: Place, record: Record, *, with_volumes: bool) -> None:
        """Delete the container and all that we have of it."""
        status = record.status
        async with contextlib.AsyncExitStack() as steps:
            steps.push_async_callback(self.release, place)
            if record.guest is not None:
                steps.push_async_callback(in_thread, _remove_empty, Cgroup(record.guest.cgroup))
            if status.container:
                engine = self.engine(status.spec.engine)
                steps.push_async_callback(engine.remove, status.container, with_volumes=with_volumes)

    # --- look ---------------------------------------------------------------------------------------------
    async def exec(self, record: Record, argv: tuple[str, ...]) -> ExecResult:
        return await self.engine(record.status.spec.engine).exec(record.status.container, argv)

    async def output(self, record: Record, place: Place, tail_bytes: int) -> bytes:
        """What it wrote on all its nodes."""
        here = await self.engine(record.status.spec.engine).output(record.status.container, tail_bytes)
        missing = tail_bytes - len(here)
        return (await in_thread(tail, place.logs, missing) if missing > 0 else b"") + here

    # --- source -------------------------------------------------------------------------------------------
    async def departure(self, record: Record, place: Place) -> Departure:
        """What of it crosses; `drop_clones` of its place must follow. Raises Refused."""
        assert record.guest is not None
        await self._refuse_visitors(record.guest)
        address = str(interface(record.status.spec.address).ip)
        foreign = await in_thread(foreign_address, record.guest.pid, address)
        if foreign is not None:
            raise Refused(
                f"it {foreign}, an address of its engine's own network, which stays behind: let it listen on 0.0.0.0 "
                f"and be reached at {address}"
            )
        await in_thread(drop_clones, place.clones)
        try:
            return await self.engine(record.status.spec.engine).leave(record.guest, place.clones)
        except BaseException:
            await in_thread(drop_clones, place.clones)
            raise

    async def _refuse_visitors(self, guest: Guest) -> None:
        """Processes that entered the container from outside are nobody's children in there: CRIU refuses them."""
        cgroup, deadline = Cgroup(guest.cgroup), time.monotonic() + VISITORS_S
        while visitors := set(cgroup.pids()) - set(tree_of(guest.pid)):
            if time.monotonic() > deadline:
                raise Refused(
                    f"process {min(visitors)} entered the container from outside (an exec or a health check): wait for "
                    "its end"
                )
            await asyncio.sleep(0.1)

    async def end(self, record: Record, place: Place) -> None:
        """Its frozen processes die here, and its engine lets it rest; its output is kept for the next node."""
        assert record.guest is not None
        output = await self.engine(record.status.spec.engine).end(record.guest.container)
        if output:
            segment = f"{record.since_ns}-{self._node}.log"
            await in_thread(add_log_segments, place.logs, msgspec.msgpack.encode({segment: output}))
        await in_thread(Cgroup(record.guest.cgroup).kill_frozen)

    # --- destination --------------------------------------------------------------------------------------
    async def prepare(self, status: ServiceStatus, description: bytes, place: Place) -> tuple[Record, Arrival]:
        """Container, network port (shut) and mounts, waiting to be filled. The caller undoes a failure by `discard`."""
        spec = status.spec
        record = Record(status=msgspec.structs.replace(status, node=self._node, container=""), incoming=True)
        await in_thread(place.create)
        await in_thread(place.save, record)

        def made(container: str) -> None:
            nonlocal record
            record = Record(status=msgspec.structs.replace(record.status, container=container), incoming=True)
            place.save(record)

        arrival = await self.engine(spec.engine).prepare(description, place.clones, made)
        try:
            inside = Path(f"/proc/{arrival.netns_pid}/ns/net") if arrival.netns_pid else None
            await in_thread(self._make_port, spec, inside, status.interface)
            guest = Guest(container=arrival.container, pid=0, start_ticks=0, cgroup=arrival.landing.cgroup)
            record = msgspec.structs.replace(record, guest=guest, runc_root=arrival.landing.runc_root)
            await in_thread(place.save, record)
        except BaseException:
            arrival.connection.close()
            raise
        return record, arrival

    async def arrived(self, record: Record, place: Place) -> Record:
        """After the restore: the container is its engine's, and the service this node's."""
        status, root = record.status, Path(record.runc_root)
        if record.guest is not None and record.runc_root and is_placeholder(root, status.container):
            # the receiving process died before it came to this
            pids = await in_thread(Cgroup(record.guest.cgroup).pids)
            await in_thread(adopt, root, status.container, find_restored(root, status.container, pids))
        try:
            guest = await self.engine(status.spec.engine).settled(status.container)
        except WhimbrelError as error:  # it runs all the same, and nobody else has it any more
            found = await in_thread(_unheard, record)
            if found is None:
                raise
            guest = found
            log.error("the engine does not know the restored container", service=place.name, error=str(error))
        await in_thread(drop_clones, place.clones)
        status = msgspec.structs.replace(
            status, state=ServiceState.RUNNING, pid=guest.pid, migrations=status.migrations + 1
        )
        record = Record(status=status, guest=guest, since_ns=time.time_ns())
        await in_thread(place.save, record)
        return record


def _remove_empty(group: Cgroup) -> None:
    """LXC does not come back for a control group that it could not remove while a killed restore was still ending."""
    with contextlib.suppress(WhimbrelError, OSError):
        if not group.pids():
            group.remove()


def _unheard(record: Record) -> Guest | None:
    """The restored container, found without its engine."""
    guest = record.guest
    if guest is None:
        return None
    for pid in Cgroup(guest.cgroup).pids():
        with contextlib.suppress(ProcessLookupError):
            start_ticks = process_start_ticks(pid)
            if ns_pid_of(pid) == 1 and start_ticks is not None:
                return msgspec.structs.replace(guest, pid=pid, start_ticks=start_ticks)
    return None
