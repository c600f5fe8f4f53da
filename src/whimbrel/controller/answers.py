"""What all routes of the API share: bodies that take nothing unknown, answers as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

_encode = msgspec.json.Encoder().encode


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


def answer_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(value), status, headers, media_type="application/json")
