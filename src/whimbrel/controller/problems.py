"""One JSON shape for every error of the API: RFC 9457 problem details, with our `code` as an extension.

{"type": "urn:whimbrel:error:conflict", "title": "Conflict", "status": 409, "detail": "…", "code": "conflict"}
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from whimbrel.model.errors import BadInput, WhimbrelError, error_from_wire

MEDIA_TYPE = "application/problem+json"

_STATUS_BY_CODE = {
    "bad-input": HTTPStatus.BAD_REQUEST,
    "refused": HTTPStatus.UNPROCESSABLE_ENTITY,
    "conflict": HTTPStatus.CONFLICT,
    "unreachable": HTTPStatus.SERVICE_UNAVAILABLE,
    "protocol-mismatch": HTTPStatus.BAD_GATEWAY,
    "step-failed": HTTPStatus.INTERNAL_SERVER_ERROR,
    "cancelled": HTTPStatus.CONFLICT,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
}


class Unauthorized(WhimbrelError):
    """Nobody knows the caller, or its token."""

    code = "unauthorized"


class Unknown(BadInput):
    """A name that the region does not know: BadInput to callers, status 404 on the wire."""


def status_of(error: WhimbrelError) -> HTTPStatus:
    if isinstance(error, Unknown):
        return HTTPStatus.NOT_FOUND
    return _STATUS_BY_CODE.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)


def problem(status: int, detail: str, code: str = "error", **extensions: Any) -> dict[str, Any]:
    return {
        "type": f"urn:whimbrel:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **extensions,
    }


def error_from_problem(body: Any, status: int) -> WhimbrelError:
    """Rebuild the error that a problem document describes; anything else becomes one readable line."""
    if isinstance(body, dict) and isinstance(body.get("detail"), str):
        return error_from_wire(str(body.get("code", "error")), body["detail"])
    return WhimbrelError(f"the controller answered with status {status} and no explanation: see its log")
