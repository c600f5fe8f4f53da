"""The services of one node: run, look at, remove; and the steps of a migration that touch a whole service.

Everything that blocks runs in a thread. A step that failed, or whose caller left, is undone whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec
import structlog

from whimbrel.agent.guest_images import GuestImages
from whimbrel.agent.guests import Guests
from whimbrel.agent.place import Place, Record
from whimbrel.agent.shared import SharedWatch
from whimbrel.agent.threads import both, in_thread
from whimbrel.migrate.probe import probed
from whimbrel.model.errors import BadInput, Conflict, Refused, WhimbrelError
from whimbrel.model.service import (
    LEAST_PROBE_S,
    MOST_PROBE_S,
    EngineKind,
    ExecResult,
    ServiceProbe,
    ServiceSpec,
    ServiceState,
    ServiceStatus,
)
from whimbrel.model.volume import parse_volumes
from whimbrel.network.names import interface, stand_in
from whimbrel.network.port import PortInfo, ServicePort
from whimbrel.runtime.adopt import adopt, find_restored, is_placeholder, point_to_rootfs
from whimbrel.runtime.cgroups import Cgroup
from whimbrel.runtime.engines.base import Engine
from whimbrel.runtime.logger import add_log_segments, open_log, pack_logs, settle, tail
from whimbrel.runtime.mounts import drop_clones
from whimbrel.runtime.moving import Departure, Landing
from whimbrel.runtime.runc import Runc
from whimbrel.storage.images import Image, ImageStore
from whimbrel.storage.volumes import VolumeStore
from whimbrel.wire import calls
from whimbrel.wire.rpc import Peer

log = structlog.get_logger()
LAST_WORDS_S = 2.0
TEND_EVERY_S = 1.0
PROBE_STEP_S = 0.005


class ServiceHost:
    """All services below `state_dir`. `gateway`: the overlay address of their default route, "" for none. `engines`:
    whose containers may be services here too. `shared`: the node's shared storage, if it has one."""

    def __init__(
        self,
        node: str,
        state_dir: Path,
        port: ServicePort,
        gateway: str = "",
        engines: Mapping[EngineKind, Engine] | None = None,
        shared: SharedWatch | None = None,
    ) -> None:
        self.images = ImageStore(state_dir / "images")
        self.volumes = VolumeStore(state_dir / "volumes")
        self.runc = Runc(state_dir / "run" / "runc")
        self.node, self._state_dir = node, state_dir
        self._port, self._gateway = port, gateway
        self.shared = shared or SharedWatch(node)
        self._guests = Guests(node, port, gateway, engines or {})
        self.guest_images = GuestImages(self._guests)
        self._records: dict[str, Record] = {}
        self._starting: dict[str, ServiceSpec] = {}
        self._busy: dict[str, str] = {}

    # --- what there is ------------------------------------------------------------------------------------
    async def load(self) -> None:
        """Find the services of the last agent again; what it had only begun to start is removed."""
        for folder in sorted((self._state_dir / "services").glob("*/")):
            record = await in_thread(self.place(folder.name).load)
            if record is not None and (record.incoming or record.status.state is not ServiceState.STARTING):
                self._records[folder.name] = record
            else:
                log.warning("removing a service that was never finished", service=folder.name)
                await self._try_to_discard(folder.name)

    async def sweep(self) -> None:
        """Remove what still waits for a migration; call it when no such migration is left."""
        for name in [name for name, record in self._records.items() if record.incoming]:
            await self._try_to_discard(name)

    async def _try_to_discard(self, name: str) -> None:
        """For an agent that starts: one service's trouble (shared storage that is away) must not keep it down."""
        try:
            await self.discard(name)
        except (WhimbrelError, OSError) as error:
            log.error("a service could not be removed", service=name, error=str(error))

    def place(self, name: str) -> Place:
        return Place(self._state_dir, self.node, name, self.shared.storage)

    def names(self) -> list[str]:
        """The services here, running or stopped, without the ones on their way."""
        return sorted(name for name, record in self._records.items() if not record.incoming)

    def has(self, name: str) -> bool:
        """A service of that name is here, on its way, or just being started."""
        return name in self._records or name in self._starting

    def refuse_taken(self, spec: ServiceSpec) -> None:
        """Raises BadInput when the name or the address is in use on this node."""
        wanted = interface(spec.address).ip
        taken = [record.status.spec for record in self._records.values()] + list(self._starting.values())
        for other in taken:
            if other.name == spec.name:
                raise BadInput(
                    f"there is a service {spec.name} on {self.node} already: choose another name, or remove "
                    f"it (`whimbrel service rm {spec.name}`)"
                )
            if interface(other.address).ip == wanted:
                raise BadInput(f"address {wanted} is used by service {other.name} on {self.node}: choose another one")

    async def inspect(self, name: str) -> ServiceStatus:
        """Raises BadInput for a service that is not here."""
        return await in_thread(self._observe, self._known(name).status)

    def _known(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None or record.incoming:
            raise BadInput(f"there is no service {name!r} on {self.node}: see `whimbrel service ls`")
        return record

    def _observe(self, status: ServiceStatus) -> ServiceStatus:
        name = status.spec.name
        record = self._records.get(name)
        init = record.guest if record is not None and record.guest is not None else self.runc.init_process(name)
        if init is None or not init.alive:
            return msgspec.structs.replace(status, state=ServiceState.STOPPED, pid=0, rss_bytes=0, processes=0)
        pids = self.cgroup(name).pids()
        return msgspec.structs.replace(
            status,
            state=ServiceState.MIGRATING if self._busy.get(name) == "migrated" else ServiceState.RUNNING,
            pid=init.pid,
            processes=len(pids),
            rss_bytes=self.place(name).rss_bytes(pids),
        )

    def cgroup(self, name: str) -> Cgroup:
        record = self._records.get(name)
        return (
            Cgroup(record.guest.cgroup) if record is not None and record.guest is not None else self.place(name).cgroup
        )

    @contextlib.contextmanager
    def _doing(self, name: str, what: str) -> Iterator[None]:
        if name in self._busy:
            raise Conflict(f"service {name} is being {self._busy[name]}: wait until that is over")
        self._busy[name] = what
        try:
            yield
        finally:
            self._busy.pop(name, None)

    def migrating(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Inside, the service is shown as migrating and cannot be removed. Raises Conflict when busy."""
        return self._doing(name, "migrated")

    # --- run and remove -----------------------------------------------------------------------------------
    async def run(self, spec: ServiceSpec) -> ServiceStatus:
        """Start a service. Raises BadInput (image, name, address), Refused; nothing stays after an error."""
        if spec.engine is not EngineKind.RUNC:
            raise BadInput(f"services are started by runc only: start it with {spec.engine}, then adopt it")
        self.refuse_taken(spec)
        storage = self.shared.require_roots() if spec.shared else ""
        self._starting[spec.name] = spec
        try:
            with self._doing(spec.name, "started"):
                image = await in_thread(self.images.ensure, spec.image)
                async with contextlib.AsyncExitStack() as undo:
                    undo.push_async_callback(self.discard, spec.name)
                    begun = await self._start(spec, image, storage)
                    status = await in_thread(self._observe, begun)
                    undo.pop_all()  # from here on nothing is awaited: a caller who leaves has its service, or nothing
        finally:
            del self._starting[spec.name]
        log.info("service runs", service=spec.name, pid=status.pid)
        return status

    async def _start(self, spec: ServiceSpec, image: Image, storage: str) -> ServiceStatus:
        place = self.place(spec.name)
        await in_thread(place.create)
        status = ServiceStatus(
            spec=spec,
            node=self.node,
            state=ServiceState.STARTING,
            pid=0,
            mac="",
            image_digest=image.digest,
            started_unix_s=time.time(),
            shared=storage,
        )
        await in_thread(place.save, Record(status=status))
        await in_thread(place.set_up, spec, image)
        port = await in_thread(self._make_port, spec)
        await in_thread(place.write_bundle, spec, image)
        output = await in_thread(open_log, place.logs, self.node)
        try:
            pid = await self.runc.create(spec.name, place.folder, output_fd=output)
        finally:
            os.close(output)
        await in_thread(self._port.open, spec.name)
        await self.runc.start(spec.name)
        await in_thread(self._port.announce, spec.name)
        await in_thread(place.volumes.in_use, spec.name)
        status = msgspec.structs.replace(status, state=ServiceState.RUNNING, pid=pid, mac=port.mac)
        await in_thread(place.save, Record(status=status))
        self._records[spec.name] = Record(status=status)
        return status

    def _make_port(self, spec: ServiceSpec) -> PortInfo:
        return self._port.create(spec.name, spec.address, self._gateway or None)

    async def adopt(self, spec: ServiceSpec, container: str) -> ServiceStatus:
        """Make a running container of another engine a service. Raises BadInput, Refused; nothing changes then."""
        self.refuse_taken(spec)
        self._starting[spec.name] = spec
        try:
            with self._doing(spec.name, "adopted"):
                guest = await self._guests.look(spec.engine, container)
                for name, record in self._records.items():
                    if record.status.container == guest.container:
                        raise BadInput(f"container {container} is service {name} already")
                self._records[spec.name] = await self._guests.adopt(spec, guest, self.place(spec.name))
        finally:
            del self._starting[spec.name]
        log.info("container adopted", service=spec.name, engine=spec.engine, container=guest.container)
        return await self.inspect(spec.name)

    async def tend(self) -> None:
        """Forever: another engine may start a container of its own again, which then has lost our network."""
        while True:
            await asyncio.sleep(TEND_EVERY_S)
            for name, record in list(self._records.items()):
                guest = record.guest
                if guest is None or record.incoming or name in self._busy or guest.alive:
                    continue
                try:
                    with self._doing(name, "plugged in again"):
                        self._records[name] = await self._guests.plug_again(record, self.place(name))
                    log.warning("a container was started again by its engine", service=name)
                except (WhimbrelError, OSError):  # it does not run: the service is shown as stopped
                    continue

    async def remove(self, name: str, *, keep_volumes: bool = False) -> None:
        """End the service and delete all of it, its output too; its volumes unless they are to be kept (another
        engine's named volumes are left to that engine). Raises BadInput, Conflict."""
        self._known(name)
        with self._doing(name, "removed"):
            if keep_volumes:
                await in_thread(self.volumes.keep, name)
            await self.discard(name, with_volumes=False)

    async def release(self, name: str) -> None:
        """Forget a container of another engine, which goes on there. Raises BadInput, Conflict."""
        if self._known(name).guest is None:
            raise BadInput(f"{name} is Whimbrel's own, and no engine's: remove it (`whimbrel service rm {name}`)")
        with self._doing(name, "released"):
            await self._guests.release(self.place(name))
            self._records.pop(name, None)

    async def discard(self, name: str, *, with_volumes: bool = True, moved_to: str = "") -> None:
        """Remove whatever exists of a service here, dead or alive; each step is tried even when one fails.

        `with_volumes`: another engine's named volumes too, which have moved along. A root on shared storage goes only
        with a service that is this node's, and has not `moved_to` another."""
        place = self.place(name)
        record = self._records.get(name) or await in_thread(place.load)
        if record is not None and record.status.spec.engine is not EngineKind.RUNC:
            if not record.incoming and record.status.state is ServiceState.STARTING:  # an adoption that did not end
                await self._guests.release(place)
            else:
                await self._guests.discard(place, record, with_volumes=with_volumes)
            self._records.pop(name, None)
            return
        async with contextlib.AsyncExitStack() as steps:
            steps.push_async_callback(in_thread, place.volumes.remove_unkept, name)
            coming = record is not None and record.incoming
            steps.push_async_callback(in_thread, place.remove_files, keep_root=coming, moved_to=moved_to)
            steps.push_async_callback(in_thread, place.cgroup.remove)
            steps.push_async_callback(in_thread, self._port.remove, name)
            steps.push_async_callback(self.runc.delete, name, force=True)
            steps.push_async_callback(in_thread, place.cgroup.kill_all)
        self._records.pop(name, None)

    # --- a migration's steps ------------------------------------------------------------------------------
    async def departure(self, name: str) -> Departure:
        """Source: what of the service crosses. `end_departure` must follow. Raises Refused when it cannot move."""
        record, place = self._known(name), self.place(name)
        if record.guest is not None:
            return await self._guests.departure(record, place)
        await in_thread(place.begin_departure)
        return place.departure(record.status.spec)

    async def end_departure(self, name: str) -> None:
        place = self.place(name)
        await in_thread(drop_clones, place.clones)
        await in_thread(place.end_departure)

    async def offer(self, spec: ServiceSpec, image_digest: str, description: bytes, shared: str = "") -> bool:
        """Destination: may it come, as far as one can see? `shared` is the storage that its root lives on, if any.
        Returns whether it brings no image, since that is here or can be unpacked here, or there is none to it.
        Raises BadInput, Refused, Conflict."""
        self.refuse_taken(spec)
        if shared and spec.shared:
            await self.shared.require(shared, spec)
        if spec.engine is not EngineKind.RUNC:
            await self._guests.offer(spec.engine, description)
            return await self._guests.engine(spec.engine).has_image(description)
        await in_thread(self.volumes.refuse_kept, spec.name, parse_volumes(spec.volumes))
        if spec.shared:
            return True
        return await in_thread(self.images.has, image_digest) or await in_thread(
            self.images.can_make, spec.image, image_digest
        )

    async def prepare_incoming(
        self, status: ServiceStatus, description: bytes = b""
    ) -> tuple[Landing, socket.socket | None]:
        """Destination: image, layer, closed network port and runc's placeholder, or what another engine has in their
        place, and then the connection to who becomes the restoring CRIU. Undone whole on failure.

        Afterwards `adopt_incoming` or `discard` must follow. Raises BadInput, Refused.
        """
        spec = status.spec
        self.refuse_taken(spec)
        self._starting[spec.name] = spec
        place = self.place(spec.name)
        try:
            if spec.engine is not EngineKind.RUNC:
                async with contextlib.AsyncExitStack() as undo:
                    undo.push_async_callback(self.discard, spec.name)
                    self._records[spec.name], arrival = await self._guests.prepare(status, description, place)
                    undo.pop_all()
                    return arrival.landing, arrival.connection
            image = None if status.shared else await self.need_image(spec, status.image_digest)
            async with contextlib.AsyncExitStack() as undo:
                undo.push_async_callback(self.discard, spec.name)
                await in_thread(place.create)
                record = Record(status=msgspec.structs.replace(status, node=self.node), incoming=True)
                await in_thread(place.save, record)
                placed, _ = await both(
                    in_thread(place.set_up_incoming, spec, image, status.node), in_thread(self._make_port, spec)
                )
                await in_thread(place.write_bundle, spec, placed, waiting=True)
                await self.runc.create(spec.name, place.folder)
                await in_thread(point_to_rootfs, self.runc.root, spec.name, place.layer.rootfs)
                await in_thread(place.write_bundle, spec, placed)
                self._records[spec.name] = record
                undo.pop_all()
        finally:
            del self._starting[spec.name]
        return place.landing(spec, self.runc.root), None

    async def need_image(self, spec: ServiceSpec, digest: str) -> Image:
        """The very image that a service was started from, unpacked here. Raises Refused when it cannot be had."""
        if await in_thread(self.images.has, digest):
            return await in_thread(self.images.get, digest)
        try:
            image = await in_thread(self.images.ensure, spec.image)
        except WhimbrelError as error:
            raise Refused(f"{self.node} has no image for {spec.name}: {error}") from error
        if image.digest != digest:
            raise Refused(
                f"{spec.image} is another image on {self.node} than the one that {spec.name} was started from: "
                "put the same image there"
            )
        return image

    async def adopt_incoming(self, status: ServiceStatus, pid: int) -> ServiceStatus:
        """Destination, after the restore: the service is this node's now, in runc's record too."""
        name = status.spec.name
        place, record = self.place(name), self._records[name]
        if status.spec.engine is not EngineKind.RUNC:
            self._records[name] = await self._guests.arrived(record, place)
            return await self.inspect(name)
        if is_placeholder(self.runc.root, name):
            await in_thread(adopt, self.runc.root, name, pid)
        await in_thread(place.remove_waiting)
        await in_thread(place.claim)
        status = msgspec.structs.replace(
            status, node=self.node, state=ServiceState.RUNNING, pid=pid, migrations=status.migrations + 1
        )
        await in_thread(place.save, Record(status=status))
        self._records[name] = Record(status=status)
        return await in_thread(self._observe, status)

    async def take_over(self, status: ServiceStatus, migration: str) -> ServiceStatus:
        """The same when nobody knows how far the receiving process came: its network is opened (again) as well."""
        name = status.spec.name
        pid = self.restored_pid(name)
        await in_thread(self._port.open, name)
        await in_thread(partial(self._port.announce, name, stand_in(migration), held_s=math.inf))  # nobody knows
        return await self.adopt_incoming(status, pid)

    async def end_unheard(self, name: str) -> None:
        """End a service's processes, and let nobody hear of it: its port shuts first, or the kernel would tell users
        that their connections are over, which go on at another node. `discard` must follow."""
        with contextlib.suppress(WhimbrelError):
            await in_thread(self._port.close, name)
        await in_thread(self.cgroup(name).kill_all)

    def restored_pid(self, name: str) -> int:
        """The first process of an adopted, or just restored, container of ours; 0 for another engine's, which knows.
        Raises WhimbrelError without one."""
        if self._records[name].status.spec.engine is not EngineKind.RUNC:
            return 0
        return find_restored(self.runc.root, name, self.place(name).cgroup.pids())

    async def end(self, name: str) -> None:
        """Source, after the commit: its frozen processes die without one more instruction."""
        record = self._known(name)
        if record.guest is not None:
            await self._guests.end(record, self.place(name))
        else:
            await in_thread(self.place(name).cgroup.kill_frozen)

    async def send_logs(self, name: str, peer: Peer) -> None:
        """Source, when its processes are dead: their output follows the service."""
        logs = self.place(name).logs
        await in_thread(settle, logs, timeout_s=LAST_WORDS_S)
        await peer.call(calls.AddLogs(name=name, segments=await in_thread(pack_logs, logs)))

    # --- what users see and do --------------------------------------------------------------------------------
    async def statuses(self) -> tuple[ServiceStatus, ...]:
        """Of all services here."""
        known = [self._records[name].status for name in self.names()]
        return tuple(await in_thread(lambda: [self._observe(status) for status in known]))

    async def output(self, name: str, tail_bytes: int) -> bytes:
        """What the service wrote to its standard streams. Raises BadInput."""
        record, place = self._known(name), self.place(name)
        if record.guest is not None:
            return await self._guests.output(record, place, tail_bytes)
        return await in_thread(tail, place.logs, tail_bytes)

    async def add_output(self, name: str, segments: bytes) -> None:
        """What it wrote on the nodes that it was on before. Raises BadInput."""
        if name not in self._records:
            raise BadInput(f"there is no service {name!r} on {self.node} whose output this could be")
        await in_thread(add_log_segments, self.place(name).logs, segments)

    async def exec(self, name: str, argv: tuple[str, ...]) -> ExecResult:
        """Run a command inside. Raises BadInput, Refused, Conflict."""
        status = await self.inspect(name)
        if not argv:
            raise BadInput(f"no command given to run in {name}")
        if status.state is ServiceState.STOPPED:
            raise Refused(f"service {name} has stopped: remove it and run it again")
        if status.state is ServiceState.MIGRATING:
            raise Conflict(f"service {name} is being migrated: wait until that is over")
        record = self._known(name)
        if record.guest is not None:
            return await self._guests.exec(record, argv)
        return await self.runc.exec(name, argv)

    async def probe(self, name: str, interval_s: float) -> ServiceProbe:
        """See `migrate.probe`. Raises BadInput, Refused, Conflict."""
        if not LEAST_PROBE_S <= interval_s <= MOST_PROBE_S:
            raise BadInput(
                f"an interval of {interval_s:g} s is not possible: use {LEAST_PROBE_S:g} to {MOST_PROBE_S:g}"
            )
        status = await self.inspect(name)
        if status.state is not ServiceState.RUNNING:
            raise Refused(f"{name} is {status.state}, not running: only a running service can be probed")
        with self._doing(name, "probed"):
            there, written = await in_thread(probed, status.pid, interval_s)
        return ServiceProbe(
            service=name, node=self.node, interval_s=interval_s, checkpoint_bytes=there, delta_bytes=written
        )

    async def until_probed(self, name: str) -> None:
        """A migration need not be refused for a probe: it is over in a moment."""
        while self._busy.get(name) == "probed":
            await asyncio.sleep(PROBE_STEP_S)
