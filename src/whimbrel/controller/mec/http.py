"""MEC 009's manners for all three interfaces: problem details, JSON bodies, entity tags."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from whimbrel.controller.access import Caller, TokenRole
from whimbrel.controller.http.guard import CALLER
from whimbrel.controller.problems import problem, status_of
from whimbrel.model.errors import BadInput, WhimbrelError

MOST_BODY_BYTES = 256 << 10
MOST_DEPTH = 32
"""Of lists and objects in each other; the specifications' own values have less than ten."""
JSON = "application/json"
PROBLEM = "application/problem+json"

T = TypeVar("T")
log = structlog.get_logger()
encode = msgspec.json.Encoder().encode


class Problem(WhimbrelError):
    """An error with a status of its own."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = HTTPStatus(status).phrase.lower().replace(" ", "-")


def not_found(what: str) -> Problem:
    return Problem(404, what)


def forbidden(why: str) -> Problem:
    return Problem(403, why)


def router(prefix: str, problems_as: str) -> APIRouter:
    """Routes of one specification. They are described by its own file and not by the controller's; `problems_as`: the
    media type that this file gives its problem details."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def careful(request: Request) -> Response:
                try:
                    _check_accept(request)
                    return await handle(request)
                except WhimbrelError as error:
                    status = error.status if isinstance(error, Problem) else int(status_of(error))
                    body = problem(status, str(error), error.code) | {"instance": _address_of(request)}
                    return Response(encode(body), status, media_type=problems_as)

            return careful

    return APIRouter(prefix=prefix, route_class=Route, include_in_schema=False)


def _address_of(request: Request) -> str:
    """As a URI, whatever was asked for."""
    return str(request.base_url).rstrip("/") + quote(request.scope["path"])


def _check_accept(request: Request) -> None:
    accepted = [one.partition(";")[0].strip().lower() for one in request.headers.get("accept", "").split(",")]
    known = ("", "*/*", "application/*", JSON, PROBLEM)
    if request.method != "DELETE" and not any(one in known for one in accepted):
        raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"answers are {JSON}: ask for that with the header Accept")


async def read_bytes(request: Request) -> bytes:
    """The body. Raises Problem 413 and 415."""
    media = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if media != JSON:
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"a body of type {media!r} is not read: send {JSON}")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY_BYTES:
            raise Problem(413, f"the body is longer than {MOST_BODY_BYTES} bytes: send less")
    return bytes(body)


async def read_json(request: Request) -> Any:
    """The body. Raises Problem 413 and 415, BadInput."""
    body = await read_bytes(request)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"the body is no JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """Whatever works its way down through the value afterwards may do so by recursion. Raises BadInput."""
    level = [value]
    for _ in range(MOST_DEPTH):
        parts = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [part for one in parts for part in one if isinstance(part, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> BadInput:
    return BadInput(f"the body has more than {MOST_DEPTH} lists and objects in each other: send a flatter one")


def convert(value: Any, kind: type[T]) -> T:
    """Raises BadInput that names the place."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BadInput(f"the body is not valid: {error}") from None


async def read(request: Request, kind: type[T]) -> T:
    return convert(await read_json(request), kind)


def caller_of(request: HTTPConnection) -> Caller | None:
    """Who asks, as the guard found out."""
    return request.scope.get(CALLER)


def may_see(caller: Caller | None, owner: str) -> bool:
    """What a consumer made is its own: for other consumers it is not there. None: the controller itself."""
    return caller is None or caller.role is not TokenRole.CONSUMER or caller.name == owner


def answer(value: Any, status: int = 200, *, location: str = "", tagged: bool = False) -> Response:
    body = encode(value)
    headers = {"Location": location} if location else {}
    if tagged:
        headers["ETag"] = _tag(body)
    return Response(body, status, headers, media_type=JSON)


NO_CONTENT = 204


def nothing() -> Response:
    return Response(status_code=NO_CONTENT)


def check_match(request: Request, current: Any) -> None:
    """`If-Match`: the resource is still what the client read. Raises Problem 412."""
    wanted = request.headers.get("if-match")
    if wanted is None or wanted.strip() == "*":
        return
    if _tag(encode(current)) not in [one.strip() for one in wanted.split(",")]:
        raise Problem(HTTPStatus.PRECONDITION_FAILED, "the resource was changed meanwhile: read it again")


def base_url(request: Request, configured: str) -> str:
    """How a consumer reaches this controller, for links."""
    return configured or str(request.base_url).rstrip("/")


def _tag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:20]}"'
