"""Migrations: start, follow, cancel, look back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import AfterValidator, Field

from whimbrel.controller.http.answers import AGENT, DATABASE, MOST_LIST, Body, answer_json, answers, page_of, streams
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.views import MigrationEvent
from whimbrel.model.migration import MigrationRecord, MigrationRequest
from whimbrel.plan.strategies import DEFAULT, names

LINES = "application/x-ndjson"
MOST_MS = 1e12
MOST_BPS = 1e15

_encode = msgspec.json.Encoder().encode


class ResolveBody(Body):
    runs_at: Literal["source", "destination"]


def _known_strategy(name: str) -> str:
    if name not in names():
        raise ValueError(f"there is no strategy {name!r}: choose from {', '.join(names())}")
    return name


Milliseconds = Annotated[float, Field(ge=0, le=MOST_MS, allow_inf_nan=False)]


class MigrateBody(Body):
    """A migration to start; 0 means: no limit asked for."""

    service: str
    destination: str
    strategy: Annotated[str, AfterValidator(_known_strategy), Field(json_schema_extra={"enum": list(names())})] = (
        DEFAULT
    )
    max_downtime_ms: Milliseconds = 0.0
    deadline_ms: Milliseconds = 0.0
    bandwidth_bps: float = Field(0.0, ge=0, le=MOST_BPS, allow_inf_nan=False)
    max_rounds: int = Field(0, ge=0, le=1_000_000)
    handover_in_ms: Milliseconds = 0.0
    handover_ms: Milliseconds = 0.0
    dry_run: bool = False
    reason: str = ""


def migration_routes(migrations: Migrations) -> APIRouter:
    router = APIRouter(prefix="/v1/migrations", tags=["migrations"])

    @router.get("", **answers(list[MigrationRecord], paged=True, errors=(404, *DATABASE)))
    async def list_migrations(
        request: Request,
        service: str = "",
        limit: Annotated[int, Query(gt=0, le=MOST_LIST)] = 100,
        cursor: str = "",
    ) -> Response:
        """The newest first; `cursor`: those older than the migration of this id."""
        return page_of(request, await migrations.newest(limit + 1, service, cursor), limit)

    @router.post("", **answers(MigrationRecord, 202, "It begins", errors=(404, 409, *AGENT)))
    async def start_migration(body: MigrateBody) -> Response:
        """Start; answers at once with the record, outcome `running`. Follow it at Location + /events."""
        request = MigrationRequest(id="", **body.model_dump(exclude={"reason"}))
        record = await migrations.start(request, body.reason)
        return answer_json(record, 202, {"Location": f"/v1/migrations/{record.id}"})

    @router.get("/{migration_id}", **answers(MigrationRecord, errors=(404, *DATABASE)))
    async def show_migration(migration_id: str) -> Response:
        """One record."""
        return answer_json(await migrations.get(migration_id))

    @router.get("/{migration_id}/events", **streams(LINES, "A `MigrationEvent` on each line", errors=(404, *DATABASE)))
    async def follow_migration(migration_id: str) -> Response:
        """News as newline-delimited JSON: progress, at last the record."""
        events = await migrations.events(migration_id)
        return StreamingResponse(_lines(events), media_type=LINES)

    @router.post("/{migration_id}/cancel", **answers(MigrationRecord, 202, "It is undone", errors=(404, 409, *AGENT)))
    async def cancel_migration(migration_id: str) -> Response:
        """Ask the source to undo; the record tells when it has."""
        await migrations.cancel(migration_id)
        return answer_json(await migrations.get(migration_id), 202)

    @router.post("/{migration_id}/resolve", **answers(MigrationRecord, 202, "It goes on", errors=(404, 409, *AGENT)))
    async def resolve_migration(migration_id: str, body: ResolveBody) -> Response:
        """Say in the place of a destination that is gone where the service runs."""
        await migrations.resolve(migration_id, runs_there=body.runs_at == "destination")
        return answer_json(await migrations.get(migration_id), 202)

    return router


async def _lines(events: AsyncIterator[MigrationEvent]) -> AsyncIterator[bytes]:
    async for event in events:
        yield _encode(event) + b"\n"
