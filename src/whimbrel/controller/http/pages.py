"""The dashboard's files, when they are there: at `/`, below everything that the API serves."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

import whimbrel

DIRECTORY = Path(whimbrel.__file__).parent / "web/static"
API_PATHS = ("/v1", "/amsi", "/rni", "/location", "/docs", "/openapi.json", "/metrics")
HEADERS = {
    # The page needs nothing from anywhere else, and is in nobody's frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time; 304 when nothing changed
}


def is_under(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


class _Pages(Mount):
    """Takes no path of the API's: there an unknown name and a wrong method stay what they are."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "")
        if any(is_under(path, one) for one in API_PATHS):
            return Match.NONE, {}
        return super().matches(scope)


def mount_pages(app: FastAPI, directory: Path = DIRECTORY) -> None:
    if directory.is_dir():
        app.router.routes.append(_Pages("/", app=_Files(directory=directory, html=True), name="pages"))
