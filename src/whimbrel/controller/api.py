"""The HTTP API under /v1. Every error is a problem document (RFC 9457); see `problems`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import msgspec
import structlog
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import AfterValidator, Field
from starlette.exceptions import HTTPException

from whimbrel import __version__
from whimbrel.controller.answers import Body, answer_json
from whimbrel.controller.config import ControllerConfig
from whimbrel.controller.http.live import live_routes
from whimbrel.controller.http.pages import mount_pages
from whimbrel.controller.live.watch import Watch
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.planning.book import PlanBook
from whimbrel.controller.planning.loop import Planning
from whimbrel.controller.planning.routes import planning_routes
from whimbrel.controller.problems import MEDIA_TYPE, problem, status_of
from whimbrel.controller.region import Region
from whimbrel.controller.services import Services
from whimbrel.controller.store import MigrationStore
from whimbrel.controller.stores import Stores
from whimbrel.controller.views import Logs, MigrationEvent
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import MigrationRequest
from whimbrel.model.service import EngineKind, ServiceSpec
from whimbrel.plan.strategies import DEFAULT, names

MAX_LOG_BYTES = 16 << 20

log = structlog.get_logger()
_encode = msgspec.json.Encoder().encode


class RunBody(Body):
    """A service to start; the fields are those of `ServiceSpec`. An empty `address` means: choose one."""

    node: str
    name: str
    image: str
    address: str = ""
    ports: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    memory_limit_bytes: int = Field(0, ge=0)
    workload: str = ""
    volumes: tuple[str, ...] = ()
    shared: bool = False


class AdoptBody(Body):
    """A running container of another engine to make a service; an empty `address` means: choose one."""

    node: str
    name: str
    engine: EngineKind
    container: str
    address: str = ""
    ports: tuple[str, ...] = ()
    workload: str = ""


class ExecBody(Body):
    argv: tuple[str, ...] = Field(min_length=1)


class PushBody(Body):
    """`image`: its digest, the beginning of it, or its reference. An empty `source` means: any node that has it."""

    image: str = Field(min_length=1)
    destination: str
    source: str = ""


def _known_strategy(name: str) -> str:
    if name not in names():
        raise ValueError(f"there is no strategy {name!r}: choose from {', '.join(names())}")
    return name


class ResolveBody(Body):
    runs_at: Literal["source", "destination"]


class MigrateBody(Body):
    """A migration to start; 0 means: no limit asked for."""

    service: str
    destination: str
    strategy: Annotated[str, AfterValidator(_known_strategy)] = DEFAULT
    max_downtime_ms: float = Field(0.0, ge=0, allow_inf_nan=False)
    deadline_ms: float = Field(0.0, ge=0, allow_inf_nan=False)
    bandwidth_bps: float = Field(0.0, ge=0, allow_inf_nan=False)
    max_rounds: int = Field(0, ge=0)
    handover_in_ms: float = Field(0.0, ge=0, allow_inf_nan=False)
    dry_run: bool = False
    reason: str = ""


class Controller:
    """The parts of a running controller, started and stopped together."""

    def __init__(self, config: ControllerConfig) -> None:
        self.config = config
        self.store = MigrationStore(config.database)
        self.region = Region(config.nodes)
        self.services = Services(self.region, config.address_pool)
        self.stores = Stores(self.region)
        self.migrations = Migrations(self.region, self.services, self.store)
        book = PlanBook(self.store.database)
        self.planning = Planning(config.planning, self.region, self.services, self.migrations, book)
        self.watch = Watch(config, self.region, self.services, self.migrations, self.planning)

    async def start(self) -> None:
        await self.region.start()
        await self.migrations.resume()
        await self.planning.start()
        await self.watch.start()

    def end_streams(self) -> None:
        """Those that would go on for as long as somebody listens."""
        self.migrations.end_streams()
        self.watch.news.hang_up()

    async def stop(self) -> None:
        await self.watch.close()
        await self.planning.close()
        await self.migrations.close()
        await self.region.close()
        self.store.close()


def create_app(controller: Controller) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await controller.start()
        try:
            yield
        finally:
            await controller.stop()

    app = FastAPI(title="Whimbrel controller", version=__version__, lifespan=lifespan)
    app.include_router(_node_routes(controller))
    app.include_router(_service_routes(controller))
    app.include_router(_migration_routes(controller))
    app.include_router(_store_routes(controller))
    for router in planning_routes(controller.planning):
        app.include_router(router)
    app.include_router(live_routes(controller.watch))
    _add_error_handlers(app)
    mount_pages(app)
    return app


def _node_routes(controller: Controller) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["nodes"])

    @router.get("/health")
    async def health() -> Response:
        """The controller answers; says nothing about the agents."""
        return answer_json({"version": __version__, "nodes": len(controller.region.nodes)})

    @router.get("/nodes")
    async def nodes() -> Response:
        """All nodes, live."""
        return answer_json(await controller.region.views())

    @router.get("/nodes/{name}")
    async def node(name: str) -> Response:
        """One node, live."""
        return answer_json(await controller.region.view(name))

    @router.post("/nodes/{name}/benchmark")
    async def benchmark(name: str) -> Response:
        """Measure the computing power of an edge node again."""
        return answer_json(await controller.region.measure_power(name))

    return router


def _service_routes(controller: Controller) -> APIRouter:
    router = APIRouter(prefix="/v1/services", tags=["services"])
    services = controller.services

    @router.get("")
    async def list_services() -> Response:
        return answer_json(await services.list())

    @router.post("")
    async def run_service(body: RunBody) -> Response:
        """Start a service; answers when it runs."""
        spec = ServiceSpec(**body.model_dump(exclude={"node"}))
        status = await services.run(spec, body.node)
        return answer_json(status, 201, {"Location": f"/v1/services/{spec.name}"})

    @router.post("/adopt")
    async def adopt_service(body: AdoptBody) -> Response:
        """Make a running container of another engine a service; answers when users reach it."""
        spec = ServiceSpec(image="", **body.model_dump(exclude={"node", "container"}))
        status = await services.adopt(spec, body.node, body.container)
        return answer_json(status, 201, {"Location": f"/v1/services/{spec.name}"})

    @router.get("/{name}")
    async def inspect_service(name: str) -> Response:
        return answer_json(await services.inspect(name))

    @router.delete("/{name}")
    async def remove_service(name: str, keep_volumes: bool = False) -> Response:
        """Its volumes go with it unless they are to be kept."""
        controller.migrations.refuse_if_moving(name)
        await services.remove(name, keep_volumes=keep_volumes)
        return Response(status_code=204)

    @router.post("/{name}/release")
    async def release_service(name: str) -> Response:
        """Give a container back to its engine."""
        controller.migrations.refuse_if_moving(name)
        await services.release(name)
        return Response(status_code=204)

    @router.get("/{name}/logs")
    async def service_logs(name: str, tail_bytes: Annotated[int, Query(gt=0, le=MAX_LOG_BYTES)] = 65536) -> Response:
        return answer_json(Logs(name=name, text=await services.logs(name, tail_bytes)))

    @router.post("/{name}/exec")
    async def exec_in_service(name: str, body: ExecBody) -> Response:
        """Run a command inside; answers when it ended. Its exit code is in the answer, not an error."""
        return answer_json(await services.exec(name, body.argv))

    return router


def _store_routes(controller: Controller) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["stores"])
    stores = controller.stores

    @router.get("/volumes")
    async def list_volumes() -> Response:
        return answer_json(await stores.volumes())

    @router.delete("/volumes/{service}/{name}")
    async def remove_volume(service: str, name: str, node: str = "") -> Response:
        """Remove a volume that outlived its service."""
        await stores.remove_volume(service, name, node)
        return Response(status_code=204)

    @router.get("/images")
    async def list_images() -> Response:
        return answer_json(await stores.images())

    @router.post("/images/push")
    async def push_image(body: PushBody) -> Response:
        """Bring an image to another node; answers when it is there."""
        return answer_json(await stores.push_image(body.image, body.destination, body.source))

    return router


def _migration_routes(controller: Controller) -> APIRouter:
    router = APIRouter(prefix="/v1/migrations", tags=["migrations"])
    migrations = controller.migrations

    @router.get("")
    async def list_migrations(service: str = "", limit: Annotated[int, Query(gt=0, le=10_000)] = 100) -> Response:
        """The newest first."""
        return answer_json(await migrations.newest(limit, service))

    @router.post("")
    async def start_migration(body: MigrateBody) -> Response:
        """Start; answers at once with the record, outcome `running`. Follow it at Location + /events."""
        request = MigrationRequest(id="", **body.model_dump(exclude={"reason"}))
        record = await migrations.start(request, body.reason)
        return answer_json(record, 202, {"Location": f"/v1/migrations/{record.id}"})

    @router.get("/{migration_id}")
    async def show_migration(migration_id: str) -> Response:
        return answer_json(await migrations.get(migration_id))

    @router.get("/{migration_id}/events")
    async def follow_migration(migration_id: str) -> Response:
        """News as newline-delimited JSON: progress, at last the record."""
        events = await migrations.events(migration_id)
        return StreamingResponse(_lines(events), media_type="application/x-ndjson")

    @router.post("/{migration_id}/cancel")
    async def cancel_migration(migration_id: str) -> Response:
        """Ask the source to undo; the record tells when it has."""
        await migrations.cancel(migration_id)
        return answer_json(await migrations.get(migration_id), 202)

    @router.post("/{migration_id}/resolve")
    async def resolve_migration(migration_id: str, body: ResolveBody) -> Response:
        """Say in the place of a destination that is gone where the service runs."""
        await migrations.resolve(migration_id, runs_there=body.runs_at == "destination")
        return answer_json(await migrations.get(migration_id), 202)

    return router


async def _lines(events: AsyncIterator[MigrationEvent]) -> AsyncIterator[bytes]:
    async for event in events:
        yield _encode(event) + b"\n"


def _add_error_handlers(app: FastAPI) -> None:
    def answer(status: int, detail: str, code: str = "error", **extensions: Any) -> Response:
        return Response(_encode(problem(status, detail, code, **extensions)), status, media_type=MEDIA_TYPE)

    @app.exception_handler(WhimbrelError)
    async def ours(_: Request, error: WhimbrelError) -> Response:
        return answer(status_of(error), str(error), error.code)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        errors = [
            {"field": ".".join(str(part) for part in one["loc"][1:]), "message": str(one["msg"])}
            for one in error.errors()
        ]
        detail = "; ".join(f"{one['field'] or 'body'}: {one['message']}" for one in errors)
        return answer(400, f"the request is not valid: {detail}", "bad-input", errors=errors)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        detail = f"{request.method} {request.url.path}: {error.detail}; the API is described at /docs"
        return answer(error.status_code, detail, "bad-input" if error.status_code < 500 else "error")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("a request failed unexpectedly", path=request.url.path, exc_info=error)
        return answer(500, f"internal error: {type(error).__name__}: {error}")
