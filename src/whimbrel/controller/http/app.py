"""Puts the API together: routes, what stands before them, and the description of it all at `/openapi.json`."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from whimbrel import __version__
from whimbrel.controller.http.answers import SCHEMAS, problems
from whimbrel.controller.http.errors import add_error_handlers
from whimbrel.controller.http.experiments import experiment_routes
from whimbrel.controller.http.guard import COOKIE, HEADER, Guard, is_open, refusals
from whimbrel.controller.http.live import live_routes
from whimbrel.controller.http.migrations import migration_routes
from whimbrel.controller.http.nodes import node_routes
from whimbrel.controller.http.observe import Observe, metrics_routes
from whimbrel.controller.http.pages import API_PATHS, is_under, mount_pages
from whimbrel.controller.http.planning import planning_routes
from whimbrel.controller.http.reference import add_reference
from whimbrel.controller.http.services import service_routes
from whimbrel.controller.http.session import session_routes
from whimbrel.controller.http.stores import store_routes
from whimbrel.controller.parts import Controller

SECURITY = {
    "token": {"type": "http", "scheme": "bearer"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": f"From `POST /v1/session`; what changes something needs the header `{HEADER.title()}: 1` too",
    },
}
"""Either will do; where the configuration names no tokens, nothing is needed."""


def create_app(controller: Controller) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await controller.start()
        gc.collect()
        gc.freeze()  # what is there now stays: to look through it again and again would hold answers up
        try:
            yield
        finally:
            await controller.stop()

    app = FastAPI(title="Whimbrel controller", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    for router in (
        *planning_routes(controller.planning),  # first: most requests are users' reports
        node_routes(controller.region),
        service_routes(controller.services, controller.migrations),
        migration_routes(controller.migrations),
        store_routes(controller.stores),
        live_routes(controller.watch, controller.access),
        session_routes(controller.access),
        *controller.mec.routes(),
        experiment_routes(controller.experiments),
        metrics_routes(controller.metrics),
    ):
        _check_paths(router)
        app.include_router(router)
    add_reference(app)
    add_error_handlers(app)
    mount_pages(app)
    app.add_middleware(Guard, access=controller.access, api=controller.config.api, listen=controller.config.listen)
    app.add_middleware(Observe, metrics=controller.metrics)  # the last one is the outermost
    _describe(app)
    return app


def _check_paths(router: APIRouter) -> None:
    """What is under no known path would be taken for a page, which needs no token."""
    for route in router.routes:
        path = getattr(route, "path", "")
        if not any(is_under(path, one) for one in API_PATHS):
            raise RuntimeError(f"route {path} is under none of {', '.join(API_PATHS)}")


def _complete(operation: dict[str, Any], method: str, path: str) -> None:
    """With what may be answered before the route is reached, and without the framework's own 422."""
    responses: dict[str, Any] = operation["responses"]
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]
    for status, answer in problems(refusals(method, path)).items():
        responses.setdefault(str(status), answer)
    operation["responses"] = dict(sorted(responses.items()))
    if is_open(method, path):
        operation["security"] = []


def _describe(app: FastAPI) -> None:
    """FastAPI's own description, with the schemas of what is answered, and what `Guard` answers."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name in SCHEMAS.keys() & schemas.keys():
                if set(SCHEMAS[name].get("enum", ())) != set(schemas[name].get("enum", (name,))):
                    raise RuntimeError(f"a body and an answer are both named {name}: rename one")
            schemas.update(sorted(SCHEMAS.items()))
            for framework in ("HTTPValidationError", "ValidationError"):  # here they are problem documents
                schemas.pop(framework, None)
            for path, methods in document["paths"].items():
                for method, operation in methods.items():
                    _complete(operation, method.upper(), path)
            document["components"]["securitySchemes"] = SECURITY
            document["security"] = [{}, *({name: []} for name in SECURITY)]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
