"""Users, applications, the planner and its decisions."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from whimbrel.controller.http.answers import (
    AGENT,
    AGENTS,
    DATABASE,
    MOST_INT,
    MOST_LIST,
    Body,
    answer_json,
    answers,
    page_of,
    schema_of,
)
from whimbrel.controller.planning.loop import Planning
from whimbrel.controller.problems import Unknown
from whimbrel.controller.views import PlannerView
from whimbrel.model.application import Application, Session
from whimbrel.model.decision import Decision, PlannerSetting, UserStatus
from whimbrel.model.edge import Observation
from whimbrel.model.errors import BadInput, Conflict, Unreachable
from whimbrel.model.history import PredictionErrors
from whimbrel.model.radio import Orders, UserEvent
from whimbrel.plan.planners import known

MOST_EVENT_BYTES = 4 << 20
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
EVENT = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(UserEvent)}}}}


class ApplicationBody(Body):
    """An application to offer; the fields are those of `Application`."""

    name: str
    image: str = Field(min_length=1)
    ports: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    memory_limit_bytes: int = Field(0, ge=0, le=MOST_INT)
    workload: str = ""
    cpus: Number = 0.1
    memory_bytes: Number = float(64 << 20)
    storage_bytes: Number = 0.0
    network_bps: Number = 0.0
    task_bytes: Number = 1000.0
    tasks_per_s: Number = 1.0
    processing_ms: Number = 0.0
    reference_power: Number = 0.0
    max_delay_ms: Number = 0.0


class DiscoveryBody(Body):
    application: str


class PlannerBody(Body):
    """What is left out stays as it is; an empty `order` means the planner's own."""

    planner: str | None = None
    order: str | None = None
    strategy: str | None = None
    paused: bool | None = None


def planning_routes(planning: Planning) -> tuple[APIRouter, ...]:
    return _user_routes(planning), _application_routes(planning), _planner_routes(planning)


def _user_routes(planning: Planning) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["users"])

    @router.post("/users/{user}/events", openapi_extra=EVENT, **answers(Orders, errors=(404,)))
    async def user_event(user: str, request: Request) -> Response:
        """What a user's equipment tells: a report, a handover, a note. The answer has orders for it."""
        body = await request.body()
        if len(body) > MOST_EVENT_BYTES:
            raise BadInput(f"an event of {len(body)} bytes is too long: post fewer requests at once")
        try:
            event: UserEvent = msgspec.json.decode(body, type=UserEvent)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"that is no event of a user: {error} (docs/radio.md says what they are)") from error
        except RecursionError:
            raise BadInput("that is no event of a user: it has too many lists in each other (docs/radio.md)") from None
        return answer_json(planning.take(user, event))

    @router.post("/users/{user}/discovery", **answers(Session, 201, "Its service is ready", errors=(404, 409, *AGENT)))
    async def discovery(user: str, body: DiscoveryBody) -> Response:
        """Ask for an application; answers when the user's service is ready, with its address (201)."""
        return answer_json(await planning.discover(user, body.application), 201)

    @router.get("/users", **answers(list[UserStatus]))
    async def users() -> Response:
        """All users that reported or have a service."""
        return answer_json(planning.statuses())

    @router.get("/users/{user}", **answers(UserStatus, errors=(404,)))
    async def user(user: str) -> Response:
        """One user."""
        if user not in planning.deployment.sessions and planning.users.get(user) is None:
            raise Unknown(f"there is no user {user!r}: see `whimbrel plan users`")
        return answer_json(planning.status(user))

    @router.delete("/users/{user}", **answers(None, 204, errors=(404, 409, *AGENT)))
    async def remove_user(user: str) -> Response:
        """The user, and its service (204)."""
        if user in planning.moves.running:
            raise Conflict(f"user {user} is being moved: wait for the end, see `whimbrel plan ls`")
        await planning.deployment.remove(user)
        return Response(status_code=204)

    return router


def _application_routes(planning: Planning) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["applications"])

    @router.get("/applications", **answers(list[Application]))
    async def applications() -> Response:
        """What users may ask for."""
        return answer_json(sorted(planning.deployment.applications.values(), key=lambda one: one.name))

    @router.post("/applications", **answers(Application, 201, "It is offered", errors=DATABASE))
    async def offer(body: ApplicationBody) -> Response:
        """Offer an application, or change one (201)."""
        return answer_json(await planning.offer(Application(**body.model_dump())), 201)

    @router.delete("/applications/{name}", **answers(None, 204, errors=(404, 409, *DATABASE)))
    async def withdraw(name: str) -> Response:
        """Offer it no more (204); 409 while somebody uses it."""
        await planning.deployment.withdraw(name)
        return Response(status_code=204)

    return router


def _planner_routes(planning: Planning) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["planner"])

    def view() -> PlannerView:
        setting = planning.setting
        return PlannerView(
            setting=setting,
            order=planning.order_of(known()[setting.planner]).value,
            planners={planner.name: planner.summary for planner in known().values()},
            last=planning.last_plan,
        )

    @router.get("/planner", **answers(PlannerView))
    async def planner() -> Response:
        """Which planner decides, and which there are."""
        return answer_json(view())

    @router.put("/planner", **answers(PlannerView, errors=DATABASE))
    async def choose(body: PlannerBody) -> Response:
        """Let another planner decide from now on, also after a restart."""
        changed = {name: value for name, value in body.model_dump().items() if value is not None}
        before: PlannerSetting = planning.setting
        await planning.set(msgspec.structs.replace(before, **changed))
        return answer_json(view())

    @router.get("/planner/errors", **answers(PredictionErrors, errors=DATABASE))
    async def errors() -> Response:
        """How far predictions of T_mig were off: each migration that is remembered, from those before it."""
        return answer_json(await planning.prediction_errors())

    @router.get("/observation", **answers(Observation, errors=(*AGENTS, 503)))
    async def observation() -> Response:
        """What the monitor sees of the region now."""
        seen = await planning.observation()
        if seen is None:
            raise Unreachable("no server or no base station answers: see `whimbrel node ls`")
        return answer_json(seen)

    @router.get("/decisions", **answers(list[Decision], paged=True, errors=(404, *DATABASE)))
    async def decisions(
        request: Request,
        user: str = "",
        limit: Annotated[int, Query(gt=0, le=MOST_LIST)] = 100,
        cursor: str = "",
    ) -> Response:
        """What was decided, why, and what came of it; the newest first; `cursor`: those older than this one."""
        return page_of(request, await planning.decisions(limit + 1, user, cursor), limit)

    @router.get("/decisions/{decision_id}", **answers(Decision, errors=(404, *DATABASE)))
    async def decision(decision_id: str) -> Response:
        """One decision."""
        found = await planning.decision(decision_id)
        if found is None:
            raise Unknown(f"there is no decision {decision_id!r}: `whimbrel plan ls` lists them")
        return answer_json(found)

    return router
