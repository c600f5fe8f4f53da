"""What all routes share: bodies that take nothing unknown, answers as JSON, and what `/openapi.json` tells of both.

Answers are msgspec structs. Their JSON schemas are msgspec's own, so no model is written down twice: `answers(Kind)`
describes a route's answer, `SCHEMAS` collects what that needs, and `app` puts it into the description.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from whimbrel.controller.problems import MEDIA_TYPE

_encode = msgspec.json.Encoder().encode
_REF = "#/components/schemas/{name}"
SCHEMAS: dict[str, Any] = {}
"""Of all kinds that some route answers, by name."""

WHY = {
    400: "The request cannot be meant",
    401: "A token is asked for, or this one is not known",
    403: "This caller may not do it",
    404: "There is nothing of that name",
    409: "Something else is under way, or it is over",
    413: "The body is too large",
    421: "This listener is not called by that name",
    422: "The request is clear, but this host, image or process cannot do it",
    500: "A step failed: the controller's log, or the agent's, says more",
    502: "Controller and agent speak different versions",
    503: "An agent or the database does not answer",
}
AGENT = (422, 500, 502, 503)
"""What may be wrong wherever an agent is asked to do something."""
AGENTS = (500, 502)
"""The same where all agents are asked, and those that are away are named in the answer."""
DATABASE = (503,)

MOST_LIST = 10_000
MOST_INT = (1 << 63) - 1


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FieldProblem(msgspec.Struct, frozen=True, kw_only=True):
    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457, with `code` as an extension, and of an invalid request its fields."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: tuple[FieldProblem, ...] = ()


def answer_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(value), status, headers, media_type="application/json")


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type, as a reference into `SCHEMAS` where it is a struct."""
    (schema,), components = msgspec.json.schema_components((kind,), ref_template=_REF)
    for name, component in components.items():
        if SCHEMAS.setdefault(name, component) != component:
            raise TypeError(f"two kinds of answers are named {name}: rename one")
    return schema


def answers(
    kind: Any, status: int = 200, says: str = "", *, paged: bool = False, errors: Iterable[int] = ()
) -> dict[str, Any]:
    """Arguments of a route that answers `kind` (None: nothing) as JSON with `status`, or a problem document with one of
    `errors`, beside those that every route may have (`guard.refusals`). `paged`: where there is more, by a link to
    it."""
    good: dict[str, Any] = {"description": says or ("Done" if kind is None else "As asked for")}
    if kind is not None:
        good["content"] = {"application/json": {"schema": schema_of(kind)}}
    if paged:
        good["headers"] = {
            "Link": {"description": 'RFC 8288: the next page, `rel="next"`', "schema": {"type": "string"}}
        }
    return {"status_code": status, "responses": {status: good, **problems(errors)}}


def streams(media_type: str, says: str, *, errors: Iterable[int] = ()) -> dict[str, Any]:
    """The same for a route that answers by a stream or by a file."""
    good = {"description": says, "content": {media_type: {"schema": {"type": "string"}}}}
    kind = type("Streamed", (Response,), {"media_type": media_type})
    return {"response_class": kind, "responses": {200: good, **problems(errors)}}


def problems(statuses: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Descriptions of answers that are problem documents (RFC 9457)."""
    content = {MEDIA_TYPE: {"schema": schema_of(Problem)}}
    return {status: {"description": WHY[status], "content": content} for status in sorted(statuses)}


def next_page(request: Request, limit: int, cursor: str | int) -> dict[str, str]:
    """The header that leads to what comes after `cursor` (RFC 8288)."""
    url = request.url.include_query_params(limit=limit, cursor=cursor)
    return {"Link": f'<{url.path}?{url.query}>; rel="next"'}


def page_of(request: Request, found: list[Any], limit: int) -> Response:
    """A list of which one more than `limit` was asked for; its elements' `id` is the cursor."""
    if len(found) <= limit:
        return answer_json(found)
    found = found[:limit]
    return answer_json(found, headers=next_page(request, limit, found[-1].id))
