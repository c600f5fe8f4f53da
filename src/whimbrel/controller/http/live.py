"""The region as it is watched: a picture, the stream of what changes, the log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from whimbrel.controller.answers import answer_json
from whimbrel.controller.live.news import MOST_LISTENERS, RING
from whimbrel.controller.live.watch import Watch
from whimbrel.model.errors import Refused

MOST_ID = 1 << 62


def live_routes(watch: Watch) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["region"])

    @router.get("/region")
    async def region() -> Response:
        """All that a map of the region shows."""
        return answer_json(await watch.picture())

    @router.get("/events")
    async def events(last_event_id: Annotated[str, Header()] = "") -> Response:
        """Server-sent events: the picture, then what changes. With `Last-Event-ID` also the log since then."""
        if watch.news.listeners >= MOST_LISTENERS:
            raise Refused(f"{MOST_LISTENERS} listeners follow the events already: close a page, or ask /v1/region")
        last_id = int(last_event_id) if last_event_id.isascii() and last_event_id.isdigit() else None
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = watch.news.follow(watch.picture, last_id)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @router.get("/log")
    async def log(
        request: Request,
        limit: Annotated[int, Query(gt=0, le=RING)] = 100,
        cursor: Annotated[int, Query(ge=0, le=MOST_ID)] = MOST_ID,
    ) -> Response:
        """What happened lately, the newest first."""
        entries = watch.news.entries(limit + 1, cursor)
        headers = {}
        if len(entries) > limit:
            entries.pop()
            next_page = request.url.include_query_params(limit=limit, cursor=entries[-1].id)
            headers["Link"] = f'<{next_page.path}?{next_page.query}>; rel="next"'
        return answer_json(entries, headers=headers)

    return router
