"""Logging in from a browser: `EventSource` can send no header, a cookie it sends by itself."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from whimbrel.controller.access import SESSION_S, Access, Caller, TokenRole
from whimbrel.controller.http.answers import Body, answer_json, answers
from whimbrel.controller.http.guard import CALLER, COOKIE, session_of
from whimbrel.controller.problems import Unauthorized


class SessionBody(Body):
    token: str


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """`needed`: callers have to log in. `name` and `role`: of the token that was used, "" and null for none."""

    needed: bool
    name: str = ""
    role: TokenRole | None = None


def session_routes(access: Access) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["session"])

    def view(caller: Caller | None) -> SessionView:
        if not access.asks:
            return SessionView(needed=False, role=TokenRole.OPERATE)
        if caller is None or not caller.name:
            return SessionView(needed=True)
        return SessionView(needed=True, name=caller.name, role=caller.role)

    @router.get("/session", **answers(SessionView))
    async def session(request: Request) -> Response:
        """Whether one has to log in, and as whom one is."""
        return answer_json(view(request.scope.get(CALLER)), headers={"Cache-Control": "no-store"})

    @router.post("/session", **answers(SessionView, 201, "Logged in: a cookie comes with it", errors=(401,)))
    async def log_in(body: SessionBody, request: Request) -> Response:
        """Begin a session with a token; the cookie keeps it. Needless where no token is asked for."""
        caller = access.by_token(body.token)
        if access.asks and caller is None:
            raise Unauthorized("this token is not known: see [api] tokens in the controller's configuration")
        answer = answer_json(view(caller), 201, {"Cache-Control": "no-store"})
        if caller is not None:
            answer.set_cookie(
                COOKIE,
                access.begin(caller),
                max_age=int(SESSION_S),
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https",
            )
        return answer

    @router.delete("/session", **answers(None, 204))
    async def log_out(request: Request) -> Response:
        """End the session."""
        access.end(session_of(request.headers))
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router
