"""What is seen of every request: how long until its answer began, by route, and who changed something."""

from __future__ import annotations

import time

import structlog
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whimbrel.controller.http.answers import AGENTS, DATABASE, streams
from whimbrel.controller.http.guard import CALLER, SAFE
from whimbrel.controller.metrics import CONTENT_TYPE, Metrics

OTHER = "other"
UNLOGGED = ("/v1/users/{user}/events", "/rni/notifications/{secret}")
"""Of those there are many a second, and who posts to the last is known by a secret in its path."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

log = structlog.get_logger()


class Observe:
    """`routes`: path templates of the API; what is none of them is counted together, so that nobody fills the memory
    by asking for names."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"], time.perf_counter() - began_s)
            await send(message)

        await self._app(scope, receive, told)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = route_of(scope)
        self._metrics.request(method, route, status, seconds)
        if method not in SAFE and route not in UNLOGGED:
            caller = scope.get(CALLER)
            path = scope["path"] if "{secret}" not in route else route
            log.info("request", method=method, path=path, status=status, ms=round(seconds * 1e3, 1),
                     caller=caller.name if caller is not None else "")  # fmt: skip


def route_of(scope: Scope) -> str:
    """The path with the names of its parts, as the description has it."""
    path = getattr(scope.get("route"), "path_format", "") or getattr(scope.get("route"), "path", "")
    return str(path) or OTHER


def metrics_routes(metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", **streams("text/plain", "Prometheus's text format", errors=(*AGENTS, *DATABASE)))
    async def figures() -> Response:
        """Figures of the region and of this controller for Prometheus."""
        return Response(await metrics.text(), media_type=CONTENT_TYPE)

    return router
