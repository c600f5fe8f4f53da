"""Services of the region."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field

from whimbrel.controller.http.answers import AGENT, AGENTS, MOST_INT, Body, answer_json, answers
from whimbrel.controller.migrations import Migrations
from whimbrel.controller.services import Services
from whimbrel.controller.views import Logs, ServiceList
from whimbrel.model.service import (
    LEAST_PROBE_S,
    MOST_PROBE_S,
    PROBE_S,
    EngineKind,
    ExecResult,
    ServiceProbe,
    ServiceSpec,
    ServiceStatus,
)

MAX_LOG_BYTES = 16 << 20


class RunBody(Body):
    """A service to start; the fields are those of `ServiceSpec`. An empty `address` means: choose one."""

    node: str
    name: str
    image: str
    address: str = ""
    ports: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    memory_limit_bytes: int = Field(0, ge=0, le=MOST_INT)
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


def service_routes(services: Services, migrations: Migrations) -> APIRouter:
    router = APIRouter(prefix="/v1/services", tags=["services"])

    @router.get("", **answers(ServiceList, errors=AGENTS))
    async def list_services() -> Response:
        """All services, and which nodes did not answer."""
        return answer_json(await services.list())

    @router.post("", **answers(ServiceStatus, 201, "It runs", errors=(404, 409, *AGENT)))
    async def run_service(body: RunBody) -> Response:
        """Start a service; answers when it runs."""
        spec = ServiceSpec(**body.model_dump(exclude={"node"}))
        status = await services.run(spec, body.node)
        return answer_json(status, 201, {"Location": f"/v1/services/{spec.name}"})

    @router.post("/adopt", **answers(ServiceStatus, 201, "Users reach it", errors=(404, 409, *AGENT)))
    async def adopt_service(body: AdoptBody) -> Response:
        """Make a running container of another engine a service; answers when users reach it."""
        spec = ServiceSpec(image="", **body.model_dump(exclude={"node", "container"}))
        status = await services.adopt(spec, body.node, body.container)
        return answer_json(status, 201, {"Location": f"/v1/services/{spec.name}"})

    @router.get("/{name}", **answers(ServiceStatus, errors=(404, *AGENT)))
    async def inspect_service(name: str) -> Response:
        """One service, as its node sees it now."""
        return answer_json(await services.inspect(name))

    @router.delete("/{name}", **answers(None, 204, errors=(404, 409, *AGENT)))
    async def remove_service(name: str, keep_volumes: bool = False) -> Response:
        """Its volumes go with it unless they are to be kept."""
        migrations.refuse_if_moving(name)
        await services.remove(name, keep_volumes=keep_volumes)
        return Response(status_code=204)

    @router.post("/{name}/release", **answers(None, 204, errors=(404, 409, *AGENT)))
    async def release_service(name: str) -> Response:
        """Give a container back to its engine."""
        migrations.refuse_if_moving(name)
        await services.release(name)
        return Response(status_code=204)

    @router.get("/{name}/logs", **answers(Logs, errors=(404, *AGENT)))
    async def service_logs(name: str, tail_bytes: Annotated[int, Query(gt=0, le=MAX_LOG_BYTES)] = 65536) -> Response:
        """The end of what it wrote."""
        return answer_json(Logs(name=name, text=await services.logs(name, tail_bytes)))

    @router.post("/{name}/exec", **answers(ExecResult, errors=(404, 409, *AGENT)))
    async def exec_in_service(name: str, body: ExecBody) -> Response:
        """Run a command inside; answers when it ended. Its exit code is in the answer, not an error."""
        return answer_json(await services.exec(name, body.argv))

    @router.post("/{name}/probe", **answers(ServiceProbe, errors=(404, 409, *AGENT)))
    async def probe_service(
        name: str, interval_s: Annotated[float, Query(ge=LEAST_PROBE_S, le=MOST_PROBE_S)] = PROBE_S
    ) -> Response:
        """How much memory it has, and how much of it it writes in `interval_s`: two rounds of the tracker, nothing of
        which is sent. It stands still for some milliseconds."""
        return answer_json(await services.probe(name, interval_s))

    return router
