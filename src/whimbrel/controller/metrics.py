"""Figures of the region for Prometheus: what happened since the controller started, counted as it is heard of, and what
the nodes say now. Times in seconds, as is usual there."""

from __future__ import annotations

from collections import Counter as Numbers
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from whimbrel import __version__
from whimbrel.controller.live.views import RegionView
from whimbrel.controller.live.watch import Watch
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.planning.loop import Planning
from whimbrel.model.decision import Decision, DecisionState
from whimbrel.model.migration import MigrationRecord, Outcome, Progress
from whimbrel.model.node import Role
from whimbrel.model.placement import PlanFigures
from whimbrel.model.radio import HandoverRecord, UserEvent, UserReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FREEZE_S = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5)
TOTAL_S = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
ERRORS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5)
REQUEST_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30)


class Metrics:
    def __init__(self, watch: Watch, migrations: Migrations, planning: Planning) -> None:
        self._watch = watch
        self._registry = CollectorRegistry()
        made = self._registry
        self._migrations = Counter(
            "whimbrel_migrations", "Migrations that ended.", ("outcome", "strategy"), registry=made
        )
        self._freeze = Histogram(
            "whimbrel_migration_freeze_seconds",
            "How long services were frozen.",
            ("strategy",),
            buckets=FREEZE_S,
            registry=made,
        )
        self._total = Histogram(
            "whimbrel_migration_seconds",
            "How long migrations took that were done.",
            ("strategy",),
            buckets=TOTAL_S,
            registry=made,
        )
        self._bytes = Counter("whimbrel_migration_sent_bytes", "What migrations sent.", ("strategy",), registry=made)
        self._decisions = Counter(
            "whimbrel_decisions", "The planner's decisions that ended.", ("planner", "state"), registry=made
        )
        self._handovers = Counter("whimbrel_handovers", "Users' handovers.", ("result",), registry=made)
        self._interruption = Histogram(
            "whimbrel_handover_interruption_seconds",
            "How long handovers interrupted users.",
            buckets=FREEZE_S,
            registry=made,
        )
        self._off = Histogram(
            "whimbrel_prediction_error_ratio",
            "How far predictions of T_mig were off, of what it took.",
            buckets=ERRORS,
            registry=made,
        )
        self._reports = Counter("whimbrel_user_reports", "Reports of users' equipment.", registry=made)
        self._requests = Histogram(
            "whimbrel_http_request_seconds",
            "Until an answer began.",
            ("method", "route", "status"),
            buckets=REQUEST_S,
            registry=made,
        )
        self._planning = planning
        migrations.listeners.append(self._on_migration)
        planning.moves.listeners.append(self._on_decision)
        planning.users.listeners.append(self._on_user)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).observe(seconds)

    async def text(self) -> bytes:
        """All of it, in Prometheus's format. Raises Unreachable when the database is away."""
        now = CollectorRegistry()
        now.register(_Now(await self._watch.picture(), self._watch.news.listeners, self._planning.last_plan))
        return generate_latest(self._registry) + generate_latest(now)

    def _on_migration(self, record: MigrationRecord, progress: Progress | None) -> None:
        if progress is not None or record.outcome in (Outcome.RUNNING, Outcome.DRY_RUN):
            return
        self._migrations.labels(record.outcome.value, record.strategy).inc()
        self._bytes.labels(record.strategy).inc(max(0, record.bytes_sent))
        if record.outcome is Outcome.DONE:
            self._freeze.labels(record.strategy).observe(record.freeze_ms / 1e3)
            self._total.labels(record.strategy).observe(record.total_ms / 1e3)

    def _on_decision(self, decision: Decision) -> None:
        if decision.state is not DecisionState.RUNNING:
            self._decisions.labels(decision.planner, decision.state.value).inc()
            if decision.prediction_error is not None:
                self._off.observe(decision.prediction_error)

    def _on_user(self, event: UserEvent) -> None:
        if isinstance(event, UserReport):
            self._reports.inc()
        elif isinstance(event, HandoverRecord):
            self._handovers.labels("failed" if event.error else "done").inc()
            if not event.error and 0 <= event.interruption_ms <= 60_000:
                self._interruption.observe(event.interruption_ms / 1e3)


class _Now(Collector):
    """What the region is at one moment."""

    def __init__(self, picture: RegionView, listeners: int, plan: PlanFigures | None) -> None:
        self._picture, self._listeners, self._plan = picture, listeners, plan

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        seen = self._picture
        yield InfoMetricFamily("whimbrel_controller", "This controller.", {"version": __version__})
        up = GaugeMetricFamily("whimbrel_node_up", "Whether its agent answers.", labels=("node", "role"))
        for node in seen.nodes:
            up.add_metric((node.name, node.role.value), float(node.up))
        yield up
        nodes = [node for node in seen.nodes if node.up]
        edges = [node for node in nodes if node.role is Role.EDGE]
        yield _by_node("services", "Services on a node.", ((node.name, len(node.services)) for node in edges))
        yield _by_node(
            "cpu_used_ratio", "Of the processors that its services may use.",
            ((node.name, node.cpu_percent / 100) for node in edges if node.cpu_percent is not None),
        )  # fmt: skip
        for name, says, found in (
            ("memory_used_bytes", "Memory in use.", [(node.name, node.memory_used_bytes) for node in nodes]),
            ("memory_bytes", "Memory that may be used.", [(node.name, node.memory_total_bytes) for node in nodes]),
            ("disk_used_bytes", "Disk in use.", [(node.name, node.disk_used_bytes) for node in nodes]),
            ("disk_bytes", "Disk.", [(node.name, node.disk_total_bytes) for node in nodes]),
            ("network_received_bps", "Bits per second that come in.", [(node.name, node.bps_in) for node in nodes]),
            ("network_sent_bps", "Bits per second that go out.", [(node.name, node.bps_out) for node in nodes]),
        ):
            yield _by_node(name, says, ((node, value) for node, value in found if value is not None))
        at = GaugeMetricFamily("whimbrel_users", "Users that reported lately.", labels=("base_station",))
        by_station = Numbers(user.serving for user in seen.users)
        for station in sorted({*by_station, *(one.name for one in seen.base_stations)}):
            at.add_metric((station,), by_station[station])
        yield at
        delays = sorted(user.delay_ms for user in seen.users if user.delay_ms is not None)
        if delays:
            delay = GaugeMetricFamily("whimbrel_user_delay_seconds", "Users' end-to-end delays.", labels=("quantile",))
            for share in (0.5, 0.95, 1.0):
                delay.add_metric((f"{share:g}",), delays[min(len(delays) - 1, int(share * len(delays)))] / 1e3)
            yield delay
        yield GaugeMetricFamily("whimbrel_migrations_running", "Migrations that run.", len(seen.migrations))
        if self._plan is not None:
            yield GaugeMetricFamily("whimbrel_plan_seconds", "What the last plan took.", self._plan.took_ms / 1e3)
            if self._plan.gap is not None:
                far = "How far from optimal the last plan may be, of its profit."
                yield GaugeMetricFamily("whimbrel_plan_gap_ratio", far, self._plan.gap)
        yield GaugeMetricFamily("whimbrel_listeners", "Who follows the events.", self._listeners)


def _by_node(name: str, says: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"whimbrel_node_{name}", says, labels=("node",))
    for node, value in values:
        family.add_metric((node,), value)
    return family
