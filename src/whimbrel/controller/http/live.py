"""The region as it is watched: a picture, the stream of what changes, the log."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, cast

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from whimbrel.controller.access import Access
from whimbrel.controller.http.answers import AGENTS, DATABASE, answer_json, answers, page_of, streams
from whimbrel.controller.http.guard import session_of
from whimbrel.controller.live.news import MOST_LISTENERS, RING
from whimbrel.controller.live.views import LogEntry, RegionView, UserSamples
from whimbrel.controller.live.watch import Watch
from whimbrel.model.errors import Refused

MOST_ID = 1 << 62
STREAM = "text/event-stream"


def live_routes(watch: Watch, access: Access) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["region"])

    @router.get("/region", **answers(RegionView, errors=(*AGENTS, *DATABASE)))
    async def region() -> Response:
        """All that a map of the region shows."""
        return answer_json(await watch.picture())

    @router.get("/events", **streams(STREAM, "Events, for as long as somebody listens", errors=(422,)))
    async def events(request: Request, last_event_id: Annotated[str, Header()] = "") -> Response:
        """Server-sent events: the picture, then what changes. With `Last-Event-ID` also the log since then. Who asked
        by a session hears nothing more once that is over."""
        if watch.news.listeners >= MOST_LISTENERS:
            raise Refused(f"{MOST_LISTENERS} listeners follow the events already: close a page, or ask /v1/region")
        is_number = last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 20
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = watch.news.follow(watch.picture, int(last_event_id) if is_number else None)
        if access.asks and "authorization" not in request.headers:
            stream = _while_logged_in(stream, access, session_of(request.headers))
        return StreamingResponse(stream, media_type=STREAM, headers=headers)

    @router.get("/users/{user}/samples", **answers(UserSamples, errors=(404,)))
    async def samples(user: str) -> Response:
        """The user's delay and signal of the last two minutes."""
        return answer_json(watch.samples(user))

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


async def _while_logged_in(stream: AsyncIterator[bytes], access: Access, session: str) -> AsyncIterator[bytes]:
    """A sign of life comes every few seconds, so that the stream ends soon after the session, whatever happens."""
    async with aclosing(cast("AsyncGenerator[bytes, None]", stream)) as parts:
        async for part in parts:
            if access.by_session(session) is None:
                return
            yield part
