"""Every error becomes a problem document (RFC 9457); see `problems`."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from whimbrel.controller.http.guard import problem_type
from whimbrel.controller.http.observe import route_of
from whimbrel.controller.problems import problem, status_of
from whimbrel.model.errors import WhimbrelError

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

log = structlog.get_logger()


def add_error_handlers(app: FastAPI) -> None:
    def answer(
        request: Request,
        status: int,
        detail: str,
        code: str = "error",
        headers: dict[str, str] | None = None,
        **extensions: Any,
    ) -> Response:
        document = problem(status, detail, code, **extensions)
        media_type = problem_type(request.scope["path"])
        return Response(msgspec.json.encode(document), status, headers, media_type=media_type)

    @app.exception_handler(WhimbrelError)
    async def ours(request: Request, error: WhimbrelError) -> Response:
        return answer(request, status_of(error), str(error), error.code)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        errors = [
            {"field": ".".join(str(part) for part in one["loc"][1:]), "message": str(one["msg"])}
            for one in error.errors()
        ]
        detail = "; ".join(f"{one['field'] or 'body'}: {one['message']}" for one in errors)
        return answer(request, 400, f"the request is not valid: {detail}", "bad-input", errors=errors)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        detail = f"{request.method} {request.scope['path']}: {error.detail}; the API is described at /docs"
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods(app, request)))
        code = "bad-input" if error.status_code < 500 else "error"
        return answer(request, error.status_code, detail, code, headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        # By its route: the path itself may hold a secret.
        log.error("a request failed unexpectedly", method=request.method, route=route_of(request.scope), exc_info=error)
        return answer(request, 500, "internal error: the controller's log says which")  # its text may hold anything


def _methods(app: FastAPI, request: Request) -> set[str]:
    """Which methods the path has: several routes may share it."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    return {
        method for method, scope in scopes.items() if any(one.matches(scope)[0] is Match.FULL for one in app.routes)
    }
