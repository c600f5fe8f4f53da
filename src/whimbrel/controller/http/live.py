"""The region as it is watched: a picture, the stream of what changes, the log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from whimbrel.controller.http.answers import answer_json, answers, page_of, streams
from whimbrel.controller.live.news import MOST_LISTENERS, RING
from whimbrel.controller.live.views import LogEntry, RegionView
from whimbrel.controller.live.watch import Watch
from whimbrel.model.errors import Refused

MOST_ID = 1 << 62
STREAM = "text/event-stream"


def live_routes(watch: Watch) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["region"])

    @router.get("/region", **answers(RegionView))
    async def region() -> Response:
        """All that a map of the region shows."""
        return answer_json(await watch.picture())

    @router.get("/events", **streams(STREAM, "Events, for as long as somebody listens"))
    async def events(last_event_id: Annotated[str, Header()] = "") -> Response:
        """Server-sent events: the picture, then what changes. With `Last-Event-ID` also the log since then."""
        if watch.news.listeners >= MOST_LISTENERS:
            raise Refused(f"{MOST_LISTENERS} listeners follow the events already: close a page, or ask /v1/region")
        is_number = last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 20
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = watch.news.follow(watch.picture, int(last_event_id) if is_number else None)
        return StreamingResponse(stream, media_type=STREAM, headers=headers)

    @router.get("/log", **answers(list[LogEntry], paged=True))
    async def log(
        request: Request,
        limit: Annotated[int, Query(gt=0, le=RING)] = 100,
        cursor: Annotated[int, Query(ge=0, le=MOST_ID)] = MOST_ID,
    ) -> Response:
        """What happened lately, the newest first."""
        entries = watch.news.entries(limit + 1, cursor)
        return page_of(request, entries, limit)

    return router
