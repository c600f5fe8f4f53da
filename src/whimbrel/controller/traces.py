"""Traces of migrations for OpenTelemetry: a span of each that ended, under it one for each of its phases, and under
these their parts (``freeze.dump`` is one of ``freeze``), made from the times that its record has. An optional extra:
without the packages nothing here is imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from whimbrel import __version__
from whimbrel.model.errors import BadInput
from whimbrel.model.migration import MigrationRecord, Outcome, Progress

TIMEOUT_S = 2
INSTALL = "install the extra: pip install 'whimbrel[traces]'"


def check_endpoint(url: str) -> str:
    """Raises BadInput for what is no URL of a collector."""
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise BadInput(f"traces {url!r} is no collector: write its OTLP address, like http://127.0.0.1:4318/v1/traces")
    return url


def exporter_to(endpoint: str) -> Any:
    """OTLP over HTTP. Raises BadInput when the packages are not installed."""
    try:
        exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise BadInput(f"traces are asked for, and {error.name or 'opentelemetry'} is not there: {INSTALL}") from error
    return exporter.OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S)


class Traces:
    """`told` is a listener of `Migrations`. A collector that does not answer costs nothing but its spans."""

    def __init__(self, exporter: Any) -> None:
        """Raises BadInput when the packages are not installed."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise BadInput(
                f"traces are asked for, and {error.name or 'opentelemetry'} is not there: {INSTALL}"
            ) from error
        resource = Resource.create({"service.name": "whimbrel-controller", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("whimbrel", __version__)

    def told(self, record: MigrationRecord, progress: Progress | None) -> None:
        if progress is None and record.outcome not in (Outcome.RUNNING, Outcome.DRY_RUN):
            self.add(record)

    def add(self, record: MigrationRecord) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        begin_ns = int(record.started_unix_s * 1e9)
        span = self._tracer.start_span("migration", start_time=begin_ns, attributes=_attributes(record))
        spans = {"": span}
        for phase in sorted(record.phases, key=lambda one: one.name.count(".")):  # a part ends before its phase does
            start_ns = begin_ns + int(phase.start_ms * 1e6)
            whole = phase.name.rpartition(".")[0]
            while whole not in spans:
                whole = whole.rpartition(".")[0]
            part = self._tracer.start_span(phase.name, set_span_in_context(spans[whole]), start_time=start_ns)
            spans[phase.name] = part
            part.end(start_ns + int(phase.duration_ms * 1e6))
        if record.outcome is not Outcome.DONE:
            span.set_status(Status(StatusCode.ERROR, record.error or record.outcome.value))
        span.end(begin_ns + int(record.total_ms * 1e6))

    def close(self) -> None:
        """Blocks until what is left was sent, for some seconds at most."""
        self._provider.force_flush(3000)
        self._provider.shutdown()


def _attributes(record: MigrationRecord) -> dict[str, str | int | float]:
    return {
        "whimbrel.migration": record.id,
        "whimbrel.service": record.service,
        "whimbrel.source": record.source,
        "whimbrel.destination": record.destination,
        "whimbrel.strategy": record.strategy,
        "whimbrel.outcome": record.outcome.value,
        "whimbrel.reason": record.reason,
        "whimbrel.freeze_ms": record.freeze_ms,
        "whimbrel.bytes_sent": record.bytes_sent,
        "whimbrel.rounds": len(record.rounds),
    }
