"""The services of one node: run, look at, remove; and the steps of a migration that touch a whole service.

Everything that blocks runs in a thread. A step that failed, or whose caller left, is undone whole.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from whimbrel.agent.place import Place, Record
from whimbrel.agent.shared import SharedWatch
from whimbrel.agent.threads import in_thread
from whimbrel.model.errors import BadInput, Conflict, Refused, WhimbrelError
from whimbrel.model.service import ExecResult, ServiceSpec, ServiceState, ServiceStatus
from whimbrel.network.names import interface
from whimbrel.network.port import PortInfo, ServicePort
from whimbrel.runtime.adopt import adopt, find_restored, is_placeholder, point_to_rootfs
from whimbrel.runtime.logger import add_log_segments, open_log, pack_logs, settle, tail
from whimbrel.runtime.runc import Runc
from whimbrel.storage.images import Image, ImageStore, placed, portable
from whimbrel.storage.layer import Layer
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, Handler, Peer

log = structlog.get_logger()
LAST_WORDS_S = 2.0


class ServiceHost:
    """All services below `state_dir`. `gateway`: the overlay address of their default route, "" for none. `shared`: the
    node's shared storage, if it has one."""

    def __init__(
        self, node: str, state_dir: Path, port: ServicePort, gateway: str = "", shared: SharedWatch | None = None
    ) -> None:
        self.images = ImageStore(state_dir / "images")
        self.runc = Runc(state_dir / "run" / "runc")
        self._node, self._state_dir = node, state_dir
        self._port, self._gateway = port, gateway
        self.shared = shared or SharedWatch(node)
        self._records: dict[str, Record] = {}
        self._starting: dict[str, ServiceSpec] = {}
        self._busy: dict[str, str] = {}

    def handlers(self) -> dict[type[calls.Call], Handler]:
        return {
            calls.RunService: self._on_run,
            calls.ListServices: self._on_list,
            calls.InspectService: self._on_inspect,
            calls.RemoveService: self._on_remove,
            calls.ServiceLogs: self._on_logs,
            calls.AddLogs: self._on_add_logs,
            calls.ExecInService: self._on_exec,
        }

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
        return Place(self._state_dir, self._node, name, self.shared.storage)

    def names(self) -> list[str]:
        """The services here, running or stopped, without the ones on their way."""
        return sorted(name for name, record in self._records.items() if not record.incoming)

    def refuse_taken(self, spec: ServiceSpec) -> None:
        """Raises BadInput when the name or the address is in use on this node."""
        wanted = interface(spec.address).ip
        taken = [record.status.spec for record in self._records.values()] + list(self._starting.values())
        for other in taken:
            if other.name == spec.name:
                raise BadInput(
                    f"there is a service {spec.name} on {self._node} already: choose another name, or remove "
                    f"it (`whimbrel service rm {spec.name}`)"
                )
            if interface(other.address).ip == wanted:
                raise BadInput(f"address {wanted} is used by service {other.name} on {self._node}: choose another one")

    async def inspect(self, name: str) -> ServiceStatus:
        """Raises BadInput for a service that is not here."""
        return await in_thread(self._observe, self._known(name).status)

    def _known(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None or record.incoming:
            raise BadInput(f"there is no service {name!r} on {self._node}: see `whimbrel service ls`")
        return record

    def _observe(self, status: ServiceStatus) -> ServiceStatus:
        name = status.spec.name
        init = self.runc.init_process(name)
        if init is None or not init.alive:
            return msgspec.structs.replace(status, state=ServiceState.STOPPED, pid=0, rss_bytes=0, processes=0)
        pids = self.place(name).cgroup.pids()
        return msgspec.structs.replace(
            status,
            state=ServiceState.MIGRATING if self._busy.get(name) == "migrated" else ServiceState.RUNNING,
            pid=init.pid,
            processes=len(pids),
            rss_bytes=self.place(name).rss_bytes(pids),
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
        self.refuse_taken(spec)
        storage = self.shared.require_roots() if spec.shared else ""
        self._starting[spec.name] = spec
        try:
            with self._doing(spec.name, "started"):
                image = await in_thread(self.images.ensure, spec.image)
                async with contextlib.AsyncExitStack() as undo:
                    undo.push_async_callback(self.discard, spec.name)
                    status = await self._start(spec, image, storage)
                    undo.pop_all()
        finally:
            del self._starting[spec.name]
        log.info("service runs", service=spec.name, pid=status.pid)
        return await in_thread(self._observe, status)

    async def _start(self, spec: ServiceSpec, image: Image, storage: str) -> ServiceStatus:
        place = self.place(spec.name)
        await in_thread(place.create)
        status = ServiceStatus(
            spec=spec,
            node=self._node,
            state=ServiceState.STARTING,
            pid=0,
            mac="",
            image_digest=image.digest,
            started_unix_s=time.time(),
            shared=storage,
        )
        await in_thread(place.save, Record(status=status))
        await in_thread(self._set_up_files, place, image, shared=spec.shared)
        port = await in_thread(self._make_port, spec)
        await in_thread(place.write_bundle, spec, image)
        output = await in_thread(open_log, place.logs, self._node)
        try:
            pid = await self.runc.create(spec.name, place.folder, output_fd=output)
        finally:
            os.close(output)
        await in_thread(self._port.open, spec.name)
        await self.runc.start(spec.name)
        await in_thread(self._port.announce, spec.name)
        status = msgspec.structs.replace(status, state=ServiceState.RUNNING, pid=pid, mac=port.mac)
        await in_thread(place.save, Record(status=status))
        self._records[spec.name] = Record(status=status)
        return status

    def _set_up_files(self, place: Place, image: Image, *, shared: bool) -> None:
        if shared:
            place.shared_root.fill(image.rootfs, portable(image))
            place.shared_root.mount(self._node, whole=True)
        else:
            Layer(place.folder).mount(image.rootfs)

    def _make_port(self, spec: ServiceSpec) -> PortInfo:
        return self._port.create(spec.name, spec.address, self._gateway or None)

    async def remove(self, name: str) -> None:
        """End the service and delete all of it, its output too. Raises BadInput, Conflict."""
        self._known(name)
        with self._doing(name, "removed"):
            await self.discard(name)

    async def discard(self, name: str, *, moved_to: str = "") -> None:
        """Remove whatever exists of a service here, dead or alive; each step is tried even when one fails. What it has
        on shared storage goes only with a service that is this node's."""
        place = self.place(name)
        record = self._records.get(name) or await in_thread(place.load)
        coming = record is not None and record.incoming
        async with contextlib.AsyncExitStack() as steps:
            steps.push_async_callback(in_thread, place.remove_files, keep_root=coming, moved_to=moved_to)
            steps.push_async_callback(in_thread, place.cgroup.remove)
            steps.push_async_callback(in_thread, self._port.remove, name)
            steps.push_async_callback(self.runc.delete, name, force=True)
            steps.push_async_callback(in_thread, place.cgroup.kill_all)
        self._records.pop(name, None)

    # --- a migration's steps ------------------------------------------------------------------------------
    async def prepare_incoming(self, status: ServiceStatus) -> None:
        """Destination: image, layer, closed network port and runc's placeholder. Undone whole on failure.

        Afterwards `adopt_incoming` or `discard` must follow. Raises BadInput, Refused.
        """
        spec = status.spec
        self.refuse_taken(spec)
        self._starting[spec.name] = spec
        try:
            image = None if status.shared else await self.need_image(spec, status.image_digest)
            async with contextlib.AsyncExitStack() as undo:
                undo.push_async_callback(self.discard, spec.name)
                place = self.place(spec.name)
                await in_thread(place.create)
                record = Record(status=msgspec.structs.replace(status, node=self._node), incoming=True)
                await in_thread(place.save, record)
                image = await in_thread(self._set_up_incoming_files, place, status, image)
                await in_thread(self._make_port, spec)
                await in_thread(place.write_bundle, spec, image, waiting=True)
                await self.runc.create(spec.name, place.folder)
                await in_thread(point_to_rootfs, self.runc.root, spec.name, place.layer.rootfs)
                await in_thread(place.write_bundle, spec, image)
                self._records[spec.name] = record
                undo.pop_all()
        finally:
            del self._starting[spec.name]

    def _set_up_incoming_files(self, place: Place, status: ServiceStatus, image: Image | None) -> Image:
        """Its root, and another one on which the placeholder waits. `image` is None for a root on shared storage."""
        if image is not None:
            Layer(place.folder).mount(image.rootfs)
            place.mount_waiting(image)
            return image
        image = placed(place.shared_root.expect(), place.shared_root.rootfs)
        place.shared_root.mount(status.node, whole=False)
        place.make_waiting()
        return image

    async def need_files(self, spec: ServiceSpec, digest: str, shared: str) -> None:
        """Raises Refused when the root file system of a service cannot be had here."""
        if shared:
            self.shared.require(shared, spec.name)
        else:
            await self.need_image(spec, digest)

    async def need_image(self, spec: ServiceSpec, digest: str) -> Image:
        """The very image that a service was started from, unpacked here. Raises Refused when it cannot be had."""
        if await in_thread(self.images.has, digest):
            return await in_thread(self.images.get, digest)
        try:
            image = await in_thread(self.images.ensure, spec.image)
        except WhimbrelError as error:
            raise Refused(f"{self._node} has no image for {spec.name}: {error}") from error
        if image.digest != digest:
            raise Refused(
                f"{spec.image} is another image on {self._node} than the one that {spec.name} was started from: "
                "put the same image there"
            )
        return image

    async def adopt_incoming(self, status: ServiceStatus, pid: int) -> ServiceStatus:
        """Destination, after the restore: the service is this node's now, in runc's record too."""
        name = status.spec.name
        place = self.place(name)
        if is_placeholder(self.runc.root, name):
            await in_thread(adopt, self.runc.root, name, pid)
        await in_thread(place.remove_waiting)
        if status.shared:
            try:
                await in_thread(place.shared_root.claim)
            except (WhimbrelError, OSError) as error:  # it runs here all the same, and claims it when it moves on
                log.error("shared storage was not told of a new owner", service=name, error=str(error))
        status = msgspec.structs.replace(
            status, node=self._node, state=ServiceState.RUNNING, pid=pid, migrations=status.migrations + 1
        )
        await in_thread(place.save, Record(status=status))
        self._records[name] = Record(status=status)
        return await in_thread(self._observe, status)

    async def take_over(self, status: ServiceStatus) -> ServiceStatus:
        """The same when nobody knows how far the receiving process came: its network is opened (again) as well."""
        name = status.spec.name
        pid = self.restored_pid(name)
        await in_thread(self._port.open, name)
        await in_thread(self._port.announce, name)
        return await self.adopt_incoming(status, pid)

    async def end_unheard(self, name: str) -> None:
        """End a service's processes, and let nobody hear of it: its port shuts first, or the kernel would tell users
        that their connections are over, which go on at another node. `discard` must follow."""
        with contextlib.suppress(WhimbrelError):
            await in_thread(self._port.close, name)
        await in_thread(self.place(name).cgroup.kill_all)

    def restored_pid(self, name: str) -> int:
        """The first process of an adopted, or just restored, container. Raises WhimbrelError without one."""
        return find_restored(self.runc.root, name, self.place(name).cgroup.pids())

    async def send_logs(self, name: str, peer: Peer) -> None:
        """Source, when its processes are dead: their output follows the service."""
        logs = self.place(name).logs
        await in_thread(settle, logs, timeout_s=LAST_WORDS_S)
        await peer.call(calls.AddLogs(name=name, segments=await in_thread(pack_logs, logs)))

    # --- calls --------------------------------------------------------------------------------------------
    async def _on_run(self, call: calls.RunService, _: EmitEvent) -> ServiceStatus:
        return await self.run(call.spec)

    async def _on_list(self, _: calls.ListServices, emit: EmitEvent) -> tuple[ServiceStatus, ...]:
        statuses = [self._records[name].status for name in self.names()]
        return tuple(await in_thread(lambda: [self._observe(status) for status in statuses]))

    async def _on_inspect(self, call: calls.InspectService, _: EmitEvent) -> ServiceStatus:
        return await self.inspect(call.name)

    async def _on_remove(self, call: calls.RemoveService, _: EmitEvent) -> None:
        await self.remove(call.name)

    async def _on_logs(self, call: calls.ServiceLogs, _: EmitEvent) -> str:
        self._known(call.name)
        return (await in_thread(tail, self.place(call.name).logs, call.tail_bytes)).decode(errors="replace")

    async def _on_add_logs(self, call: calls.AddLogs, _: EmitEvent) -> None:
        if call.name not in self._records:
            raise BadInput(f"there is no service {call.name!r} on {self._node} whose output this could be")
        await in_thread(add_log_segments, self.place(call.name).logs, call.segments)

    async def _on_exec(self, call: calls.ExecInService, _: EmitEvent) -> ExecResult:
        status = await self.inspect(call.name)
        if not call.argv:
            raise BadInput(f"no command given to run in {call.name}")
        if status.state is ServiceState.STOPPED:
            raise Refused(f"service {call.name} has stopped: remove it and run it again")
        if status.state is ServiceState.MIGRATING:
            raise Conflict(f"service {call.name} is being migrated: wait until that is over")
        return await self.runc.exec(call.name, call.argv)
