"""A node's figures for Prometheus, where its settings ask for it: what it has and uses, its services, the ways to other
nodes. Served by threads of their own, apart from migrations."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

from whimbrel import __version__
from whimbrel.agent.config import AgentConfig, metrics_place
from whimbrel.agent.inventory import collect_resources
from whimbrel.agent.monitor import Monitor
from whimbrel.model.errors import Refused


class MetricsServer:
    """Answers until `close`."""

    def __init__(self, server: Any, thread: Thread) -> None:
        self._server, self._thread = server, thread

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(config: AgentConfig, monitor: Monitor) -> MetricsServer:
    """Raises Refused when the place is taken."""
    # Here, not above: an agent that shows no figures is not to load it.
    from prometheus_client import CollectorRegistry, start_http_server

    host, port = metrics_place(config.metrics)
    registry = CollectorRegistry()
    registry.register(_Figures(config, monitor))
    try:
        return MetricsServer(*start_http_server(port, host, registry))
    except OSError as error:
        raise Refused(
            f"cannot show metrics at {config.metrics}: {error.strerror}; choose another `metrics` for node "
            f"{config.name}, or leave it out"
        ) from None


class _Figures:
    def __init__(self, config: AgentConfig, monitor: Monitor) -> None:
        self._config, self._monitor = config, monitor

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

        name = self._config.name
        has = collect_resources(self._config, self._monitor)
        yield InfoMetricFamily(
            "whimbrel_agent", "This agent.", {"version": __version__, "node": name, "role": self._config.role.value}
        )
        for key, says, value in (
            ("load_1min", "Load of the machine.", has.load_1min),
            ("cpus_used", "Processors that its services use.", has.cpus_used),
            ("cpu_capacity", "Processors that they may use.", has.cpu_capacity),
            ("computing_power", "Events of the benchmark per second.", has.computing_power),
            ("memory_used_bytes", "Memory that its services use.", has.memory_used_bytes),
            ("memory_capacity_bytes", "Memory that they may use.", has.memory_capacity_bytes),
            ("memory_available_bytes", "Memory that is free for them.", has.memory_available_bytes),
            ("disk_available_bytes", "Disk that is free.", has.disk_available_bytes),
            ("stage_available_bytes", "Room for staged images.", has.stage_available_bytes),
            ("network_received_bps", "Bits per second that come in.", has.network_received_bps),
            ("network_sent_bps", "Bits per second that go out.", has.network_sent_bps),
        ):
            family = GaugeMetricFamily(f"whimbrel_agent_{key}", says, labels=("node",))
            family.add_metric((name,), value)
            yield family
        cpus = GaugeMetricFamily("whimbrel_service_cpus_used", "Processors it uses.", labels=("node", "service"))
        memory = GaugeMetricFamily("whimbrel_service_memory_bytes", "Memory it uses.", labels=("node", "service"))
        for use in self._monitor.services():
            cpus.add_metric((name, use.name), use.cpus_used)
            memory.add_metric((name, use.name), use.memory_bytes)
        yield cpus
        yield memory
        trips = GaugeMetricFamily("whimbrel_path_round_trip_seconds", "To another node.", labels=("node", "to"))
        for path in self._monitor.paths():
            if path.round_trip_ms is not None:
                trips.add_metric((name, path.to), path.round_trip_ms / 1e3)
        yield trips
