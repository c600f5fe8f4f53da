"""The dashboard of a controller that listens on a UNIX socket, for a browser on the same machine: `whimbrel dashboard`.

Requests go through as they are, for as long as it runs. The socket is its owner's, but a port is everybody's who is on
this machine: the address that is printed holds a key, which the browser trades for a cookie, and nothing is handed on
without it. A browser is no careful caller: pages of other sites reach 127.0.0.1 too, by names of their own (DNS
rebinding), so the name that a request was sent to is checked here; where a request came from is checked by the
controller.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from whimbrel.controller.listen import Listen
from whimbrel.controller.listener import open_listener
from whimbrel.model.errors import Unreachable

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
# Of one connection (RFC 9110, 7.6.1), not of the message.
HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection"}
KEY = "key"
CONNECT_S = 3.0
KEPT_S = 2.0
"""So long a connection that nobody uses is kept: less than the controller keeps its end (5 s)."""
SAFE = {"GET", "HEAD"}
GRACE_S = 2
LIMITS = httpx.Limits(max_connections=256, keepalive_expiry=KEPT_S)


def relay(controller: Listen, key: str) -> Starlette:
    """An application that hands everything on to the controller for those who know the key."""
    cookie = f"whimbrel_dashboard_{key[:6]}"  # a cookie is for all ports of a host: another dashboard has another
    http = httpx.AsyncClient(
        base_url="http://controller" if controller.path else f"http://{controller.host}:{controller.port}",
        # No TLS here: building its context would take 30 ms.
        transport=httpx.AsyncHTTPTransport(uds=controller.path or None, limits=LIMITS, verify=False),
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        trust_env=False,
    )

    async def hand_on(request: Request) -> Response:
        if not is_local(request.headers.get("host", "")):
            return PlainTextResponse("this is for callers of 127.0.0.1 only\n", 421)
        if is_same(request.query_params.get(KEY, ""), key):
            entered = RedirectResponse("/", 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
            entered.set_cookie(cookie, key, httponly=True, samesite="lax")
            return entered
        if not is_same(request.cookies.get(cookie, ""), key):
            return PlainTextResponse("open the address that `whimbrel dashboard` has printed, with its key\n", 403)
        target = request.scope["raw_path"].decode("latin-1")
        if request.scope["query_string"]:
            target += "?" + request.scope["query_string"].decode("latin-1")
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP]
        body = _body(request)
        asked = http.build_request(request.method, target, headers=headers, content=body)
        try:
            try:
                answer = await http.send(asked, stream=True)
            except httpx.RemoteProtocolError:  # a kept connection was closed at the other end meanwhile
                if request.method not in SAFE or body is not None:
                    raise
                answer = await http.send(asked, stream=True)
        except httpx.HTTPError as error:
            return PlainTextResponse(f"the controller at {controller} does not answer: {error}\n", 502)
        handed = StreamingResponse(
            _as_long_as_it_comes(answer) if request.method != "HEAD" else _nothing(),
            answer.status_code,
            background=BackgroundTask(answer.aclose),
        )
        handed.raw_headers = [
            (name.lower(), value) for name, value in answer.headers.raw if name.lower().decode("latin-1") not in HOP
        ]
        return handed

    return Starlette(routes=[Route("/{path:path}", hand_on, methods=METHODS)])


def _body(request: Request) -> AsyncIterator[bytes] | None:
    has_one = "content-length" in request.headers or "transfer-encoding" in request.headers
    return request.stream() if has_one else None


async def _as_long_as_it_comes(answer: httpx.Response) -> AsyncIterator[bytes]:
    """A controller that goes away ends its answers: the browser asks again."""
    with contextlib.suppress(httpx.HTTPError):
        async for part in answer.aiter_raw():
            yield part


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def is_same(said: str, key: str) -> bool:
    return secrets.compare_digest(said.encode("utf-8", "surrogateescape"), key.encode())


def is_local(host: str) -> bool:
    """Is the `Host` of a request a name or an address of this machine's loopback?"""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def serve(controller: Listen, port: int, ready: Callable[[str], None]) -> int:
    """Until SIGTERM or Ctrl-C. `ready` is told the address, once connections are taken. Raises Conflict and
    Unreachable."""
    transport = httpx.HTTPTransport(uds=controller.path or None, verify=False)  # no TLS here
    base = "http://controller" if controller.path else f"http://{controller.host}:{controller.port}"
    try:
        with httpx.Client(transport=transport, base_url=base, timeout=CONNECT_S, trust_env=False) as probe:
            probe.get("/v1/health")
    except httpx.HTTPError as error:
        raise Unreachable(f"no controller answers at {controller}: start one, or name it with --controller") from error
    listener = open_listener(Listen(host="127.0.0.1", port=port))
    key = secrets.token_urlsafe(24)
    server = uvicorn.Server(
        uvicorn.Config(
            relay(controller, key), log_level="critical", access_log=False, timeout_graceful_shutdown=GRACE_S
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the server ends in order, and raises its signal once more afterwards
    try:
        listener.listen(128)
        ready(f"http://127.0.0.1:{listener.getsockname()[1]}/?{KEY}={key}")
        sys.stdout.flush()
        server.run(sockets=[listener])
    finally:
        listener.close()
    return 0
