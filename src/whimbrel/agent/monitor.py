"""What a planner needs to know of this node, sampled for as long as the agent runs: the use of processors, memory and
network by the node and by each service, and the round-trip time to every other node."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from whimbrel.agent import power
from whimbrel.agent.config import AgentConfig
from whimbrel.agent.threads import in_thread
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.node import ComputingPower, Endpoint, PathStatus, Role, ServiceUse
from whimbrel.network.ping import round_trips_ms
from whimbrel.runtime.capacity import cpu_used_s, node_cgroup
from whimbrel.runtime.cgroups import Cgroup

SAMPLE_S = 2.0
PING_S = 5.0
OLD_PING_S = 3 * PING_S

log = structlog.get_logger()


@dataclass
class _Rate:
    """A counter that only grows, and how fast it did between the last two looks."""

    value: float = 0.0
    at_s: float = 0.0
    per_s: float = 0.0

    def look(self, value: float, now_s: float) -> None:
        if self.at_s and now_s > self.at_s and value >= self.value:
            self.per_s = (value - self.value) / (now_s - self.at_s)
        self.value, self.at_s = value, now_s


@dataclass
class _Heard:
    round_trip_ms: float
    unix_s: float
    at_s: float


@dataclass
class Network:
    """Of the interface that the node's address is on."""

    interface: str = ""
    capacity_bps: float = 0.0
    received: _Rate = field(default_factory=_Rate)
    sent: _Rate = field(default_factory=_Rate)


class Monitor:
    """`groups`: the services' control groups, by name."""

    def __init__(self, config: AgentConfig, groups: Callable[[], dict[str, Cgroup]]) -> None:
        self._config = config
        self._groups = groups
        self._node = node_cgroup(config.name)
        self._cpu: dict[str, _Rate] = {}
        self._peers: tuple[Endpoint, ...] = ()
        self._heard: dict[str, _Heard] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._new_peers = asyncio.Event()
        self.network = Network(capacity_bps=config.network_bps)
        self.power: ComputingPower | None = None

    def start(self) -> None:
        jobs = [self._sample_for_ever(), self._ping_for_ever()]
        if self._config.role is Role.EDGE:
            jobs.append(self._find_power())
        self._tasks = [asyncio.create_task(job) for job in jobs]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def set_peers(self, peers: Iterable[Endpoint]) -> None:
        self._peers = tuple(peer for peer in peers if peer.name != self._config.name)
        self._new_peers.set()

    async def measure_power(self) -> ComputingPower:
        """Anew. Raises StepFailed."""
        self.power = await in_thread(power.computing_power, Path(self._config.computing_power_file), anew=True)
        return self.power

    # --- what is told ---------------------------------------------------------------------------------------
    @property
    def cpus_used(self) -> float:
        """Processors that the services kept busy lately."""
        return sum(rate.per_s for rate in self._cpu.values())

    def services(self) -> tuple[ServiceUse, ...]:
        return tuple(
            ServiceUse(
                name=name,
                cpus_used=self._cpu[name].per_s if name in self._cpu else 0.0,
                memory_bytes=group.memory_bytes() or 0,
            )
            for name, group in sorted(self._groups().items())
        )

    def paths(self) -> tuple[PathStatus, ...]:
        """To every other node; what has not answered lately has no round-trip time."""
        rates = {path.to: path.bps for path in self._config.paths}
        heard = {name: entry for name, entry in self._heard.items() if time.monotonic() - entry.at_s < OLD_PING_S}
        return tuple(
            PathStatus(
                to=peer.name,
                round_trip_ms=heard[peer.name].round_trip_ms if peer.name in heard else None,
                measured_unix_s=heard[peer.name].unix_s if peer.name in heard else 0.0,
                rate_bps=rates.get(peer.name, 0.0),
            )
            for peer in self._peers
        )

    # --- looking --------------------------------------------------------------------------------------------
    async def _sample_for_ever(self) -> None:
        while True:
            with contextlib.suppress(OSError, WhimbrelError):  # a service that is just going
                await in_thread(self._sample)
            await asyncio.sleep(SAMPLE_S)

    def _sample(self) -> None:
        now_s = time.monotonic()
        groups = self._groups()
        for name in set(self._cpu) - set(groups):
            del self._cpu[name]
        for name, group in groups.items():
            used_s = cpu_used_s(group)
            if used_s is not None:
                self._cpu.setdefault(name, _Rate()).look(used_s, now_s)
        self._sample_network(now_s)

    def _sample_network(self, now_s: float) -> None:
        network = self.network
        if not network.interface:
            addresses = psutil.net_if_addrs().items()
            network.interface = next(
                (name for name, found in addresses if any(each.address == self._config.host for each in found)), ""
            )
            if not self._config.network_bps and network.interface in (stats := psutil.net_if_stats()):
                network.capacity_bps = max(0, stats[network.interface].speed) * 1e6
        counters = psutil.net_io_counters(pernic=True, nowrap=False).get(network.interface)
        if counters is not None:
            network.received.look(counters.bytes_recv * 8, now_s)
            network.sent.look(counters.bytes_sent * 8, now_s)

    async def _ping_for_ever(self) -> None:
        complained = False
        while True:
            self._new_peers.clear()
            peers = {peer.overlay_host: peer.name for peer in self._peers}
            try:
                for address, ms in (await in_thread(round_trips_ms, peers)).items():
                    self._heard[peers[address]] = _Heard(ms, time.time(), time.monotonic())
                complained = False
            except OSError as error:
                if not complained:
                    log.warning("round-trip times cannot be measured", error=str(error))
                complained = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._new_peers.wait(), PING_S)

    async def _find_power(self) -> None:
        try:
            self.power = await in_thread(power.computing_power, Path(self._config.computing_power_file))
        except (WhimbrelError, OSError) as error:
            log.warning("no computing power is known", error=str(error))
