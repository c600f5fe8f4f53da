"""The calls about services and volumes that an agent answers: each leads to what its `ServiceHost` does."""

from __future__ import annotations

from whimbrel.agent.services import ServiceHost
from whimbrel.agent.threads import in_thread
from whimbrel.model.errors import Conflict
from whimbrel.model.service import ExecResult, ServiceProbe, ServiceStatus
from whimbrel.model.volume import VolumeInfo
from whimbrel.wire import calls
from whimbrel.wire.rpc import EmitEvent, Handler


class ServiceCalls:
    def __init__(self, host: ServiceHost) -> None:
        self._host = host

    def handlers(self) -> dict[type[calls.Call], Handler]:
        return {
            calls.RunService: self._run,
            calls.AdoptService: self._adopt,
            calls.ListServices: self._list,
            calls.InspectService: self._inspect,
            calls.RemoveService: self._remove,
            calls.ReleaseService: self._release,
            calls.ServiceLogs: self._logs,
            calls.AddLogs: self._add_logs,
            calls.ExecInService: self._exec,
            calls.ProbeService: self._probe,
            calls.ListVolumes: self._volumes,
            calls.RemoveVolume: self._remove_volume,
        }

    async def _run(self, call: calls.RunService, _: EmitEvent) -> ServiceStatus:
        return await self._host.run(call.spec)

    async def _adopt(self, call: calls.AdoptService, _: EmitEvent) -> ServiceStatus:
        return await self._host.adopt(call.spec, call.container)

    async def _list(self, _: calls.ListServices, emit: EmitEvent) -> tuple[ServiceStatus, ...]:
        return await self._host.statuses()

    async def _inspect(self, call: calls.InspectService, _: EmitEvent) -> ServiceStatus:
        return await self._host.inspect(call.name)

    async def _remove(self, call: calls.RemoveService, _: EmitEvent) -> None:
        await self._host.remove(call.name, keep_volumes=call.keep_volumes)

    async def _release(self, call: calls.ReleaseService, _: EmitEvent) -> None:
        await self._host.release(call.name)

    async def _logs(self, call: calls.ServiceLogs, _: EmitEvent) -> str:
        return (await self._host.output(call.name, call.tail_bytes)).decode(errors="replace")

    async def _add_logs(self, call: calls.AddLogs, _: EmitEvent) -> None:
        await self._host.add_output(call.name, call.segments)

    async def _exec(self, call: calls.ExecInService, _: EmitEvent) -> ExecResult:
        return await self._host.exec(call.name, call.argv)

    async def _probe(self, call: calls.ProbeService, _: EmitEvent) -> ServiceProbe:
        return await self._host.probe(call.name, call.interval_s)

    async def _volumes(self, _: calls.ListVolumes, emit: EmitEvent) -> tuple[VolumeInfo, ...]:
        return await in_thread(self._look_at_volumes)

    def _look_at_volumes(self) -> tuple[VolumeInfo, ...]:
        host = self._host
        return tuple(
            VolumeInfo(
                service=volume.service,
                name=volume.name,
                node=host.node,
                path=volume.path,
                size_bytes=volume.size_bytes,
                used_bytes=host.volumes.used_bytes(volume),
                in_use=host.has(volume.service),
            )
            for volume in host.volumes.all()
        )

    async def _remove_volume(self, call: calls.RemoveVolume, emit: EmitEvent) -> None:
        if self._host.has(call.service):
            raise Conflict(f"volume {call.name} is used by service {call.service}: remove the service")
        await in_thread(self._host.volumes.remove, call.service, call.name)
