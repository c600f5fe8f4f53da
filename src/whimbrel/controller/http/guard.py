"""What every request has to pass before a route sees it: the host it was sent to, the page it was sent from, who sends
it, and how much.

A listener without tokens trusts whoever reaches it, so no page of another site may reach it through its visitor's
browser: neither by its own name for 127.0.0.1 (DNS rebinding: `Host` is checked), nor by a form (`Origin` is).
"""

from __future__ import annotations

import ipaddress
import re
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whimbrel.controller.access import LOCAL, Access, ApiConfig, Caller, allows
from whimbrel.controller.http.pages import API_PATHS, is_under
from whimbrel.controller.listen import Listen
from whimbrel.controller.problems import MEDIA_TYPE, problem

COOKIE = "whimbrel_session"
HEADER = "x-whimbrel"
SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/v1/health", "/v1/session", "/docs", "/openapi.json")
"""What anybody may ask for: it tells nothing of the region. So do the dashboard's own files."""
NOTIFIED = "/rni/notifications"
"""Another's service posts here what the controller subscribed to: by a secret in the path, for it has no token."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
CALLER = "whimbrel.caller"
HOST = re.compile(r"(\[[0-9A-Za-z:.%]+\]|[0-9A-Za-z._~-]+)(:[0-9]{0,5})?")


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, code: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.headers = status, code, headers


class Guard:
    def __init__(self, app: ASGIApp, access: Access, api: ApiConfig, listen: Listen) -> None:
        self._app, self._access, self._most_bytes = app, access, api.max_body_bytes
        self._hosts: set[str] | None = None
        if not listen.path and listen.is_local:
            self._hosts = {*LOCAL_NAMES, listen.host.lower(), *api.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            _check_written(headers)
            self._check_host(headers)
            self._check_origin(scope, headers)
            scope[CALLER] = self._caller(scope, headers)
            receive = self._counted(headers, receive)
            await self._app(scope, receive, send)
        except _Refused as error:
            await _refuse(error, scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        name = _host_name(headers.get("host", ""))
        if self._hosts is not None and name not in self._hosts and not _is_loopback(name):
            raise _Refused(
                HTTPStatus.MISDIRECTED_REQUEST, "bad-input",
                f"this listener is for local callers, and is not called {name!r}: use 127.0.0.1, or name the host in "
                "[api] hosts",
            )  # fmt: skip

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """A page of another site may read nothing (there is no CORS), and is to change nothing."""
        if scope["type"] == "http" and scope["method"] in SAFE:
            return
        origin = headers.get("origin")
        if origin is not None and _place_of(origin) != headers.get("host", "").lower():
            raise _Refused(
                HTTPStatus.FORBIDDEN, "forbidden", f"pages of {origin!r} may change nothing here: use the API's own"
            )

    def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        """None: somebody who asks for what is open to all."""
        method, path = scope.get("method", "GET"), scope["path"]
        if not self._access.asks:
            return LOCAL
        kind, _, token = headers.get("authorization", "").partition(" ")
        session = session_of(headers)
        by_cookie = False
        if kind.lower() == "bearer" and token.strip():
            caller = self._access.by_token(token.strip())
        else:
            caller = self._access.by_session(session) if session else None
            by_cookie = caller is not None
        if is_open(method, path):
            return caller
        if caller is None:
            raise _Refused(
                HTTPStatus.UNAUTHORIZED, "unauthorized",
                f"{method} {path} asks for a token: send it as `Authorization: Bearer …` (the command line takes it "
                "from WHIMBREL_TOKEN), or log in to the dashboard",
                **{"www-authenticate": 'Bearer realm="whimbrel"'},
            )  # fmt: skip
        if by_cookie and method not in SAFE and headers.get(HEADER) != "1":
            raise _Refused(HTTPStatus.FORBIDDEN, "forbidden", f"{method} by a session needs the header X-Whimbrel: 1")
        if not allows(caller.role, method, path):
            raise _Refused(
                HTTPStatus.FORBIDDEN, "forbidden",
                f"token {caller.name} has the role {caller.role}, which may not {method} {path}: use another token",
            )  # fmt: skip
        return caller

    def _counted(self, headers: Headers, receive: Receive) -> Receive:
        """The body, refused once it is more than is taken: before it is read where its length is told."""
        said = headers.get("content-length", "")
        if said.isascii() and said.isdigit() and (len(said) > 15 or int(said) > self._most_bytes):
            raise self._too_much()
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self._most_bytes:
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(self._too_much()))
            return message

        return counted

    def _too_much(self) -> _Refused:
        return _Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "bad-input",
            f"a body of more than {self._most_bytes} bytes is not taken: send less at once, or raise [api] max_body",
            connection="close",
        )  # fmt: skip


def is_open(method: str, path: str) -> bool:
    """Whether anybody may ask for it, without a token."""
    if path in OPEN or is_under(path, NOTIFIED):
        return True
    return method in SAFE and not any(is_under(path, one) for one in API_PATHS)


def refusals(method: str, path: str) -> tuple[int, ...]:
    """By which statuses such a request may end here, before a route sees it."""
    of_all = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.MISDIRECTED_REQUEST)
    if not is_open(method, path):
        return (*of_all, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    return of_all if method in SAFE else (*of_all, HTTPStatus.FORBIDDEN)


def problem_type(path: str) -> str:
    """MEC 021's file gives its problems this type, the others' give theirs RFC 9457's."""
    return "application/json" if is_under(path, "/amsi") else MEDIA_TYPE


def session_of(headers: Headers) -> str:
    """The session that a browser's cookie names, "" for none."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _check_written(headers: Headers) -> None:
    """That `Host` is a host: what is made of it below are URLs, which raise where they are read if it is none."""
    host = headers.get("host", "")
    try:
        is_one = not host or (HOST.fullmatch(host) is not None and bool(urlsplit(f"//{host}").port or True))
    except ValueError:
        is_one = False
    if not is_one:
        raise _Refused(HTTPStatus.BAD_REQUEST, "bad-input", f"the header Host is {host[:100]!r}, which names no host")


def _place_of(origin: str) -> str | None:
    """Host and port of an `Origin`; None where it has none that can be read."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """Without its port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _refuse(error: _Refused, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
        return
    document: dict[str, Any] = problem(error.status, str(error), error.code)
    media_type = problem_type(scope["path"])
    response = Response(msgspec.json.encode(document), error.status, error.headers, media_type=media_type)
    await response(scope, receive, send)
