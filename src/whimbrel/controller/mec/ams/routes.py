"""The resources of ``/amsi/v1``."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response

from whimbrel.controller.mec.ams.models import (
    ADJACENT,
    ASKED,
    KINDS,
    AdjacentAppInfoSubscription,
    MobilityProcedureSubscription,
    MobilityStatus,
    RegistrationInfo,
    modern,
)
from whimbrel.controller.mec.ams.service import Mobility
from whimbrel.controller.mec.common import AppTerminationNotification, LinkType, SelfLink
from whimbrel.controller.mec.filters import Shape, select
from whimbrel.controller.mec.http import (
    JSON,
    Problem,
    answer,
    base_url,
    caller_of,
    check_match,
    convert,
    not_found,
    nothing,
    read,
    read_json,
    router,
)
from whimbrel.controller.mec.listing import listed
from whimbrel.controller.mec.subscriptions import new_id, terms_of
from whimbrel.model.errors import BadInput

PREFIX = "/amsi/v1"
ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
REGISTRATION = Shape(
    names=frozenset({"appMobilityServiceId", "deviceInformation", "expiryTime", "serviceConsumerId"}),
    complex=frozenset({"deviceInformation"}),
    default=frozenset({"deviceInformation"}),
)
NEIGHBOUR = Shape(
    names=frozenset({"appDId", "appInstanceCommLink", "appInstanceId", "mecHostInformation", "registeredInstanceId"}),
    complex=frozenset({"mecHostInformation"}),
    default=frozenset({"mecHostInformation"}),
)

AnySubscription = MobilityProcedureSubscription | AdjacentAppInfoSubscription
log = structlog.get_logger()


def ams_routes(mobility: Mobility, url: str) -> list[APIRouter]:
    """`url`: how consumers reach the controller; "": as they asked."""
    return [_registration_routes(mobility), _subscription_routes(mobility, url), _other_routes(mobility)]


def _registration_routes(mobility: Mobility) -> APIRouter:
    routes = router(f"{PREFIX}/app_mobility_services", JSON)
    registrations = mobility.registrations

    async def registration(request: Request) -> RegistrationInfo:
        info = convert(modern(await read_json(request)), RegistrationInfo)
        consumer = info.service_consumer_id
        if not consumer.app_instance_id and not consumer.mep_id:
            raise BadInput("serviceConsumerId is empty: name its appInstanceId or its mepId")
        return info

    @routes.get("")
    async def find(request: Request) -> Response:
        items = [msgspec.to_builtins(info) for info in registrations.all(caller_of(request))]
        return answer(select(items, request.query_params, REGISTRATION))

    @routes.post("")
    async def register(request: Request) -> Response:
        info = await registration(request)
        wanted = info.app_mobility_service_id
        if wanted and not ID.fullmatch(wanted):
            raise BadInput(f"appMobilityServiceId {wanted!r} is not valid: use 1 to 128 of a-z, A-Z, 0-9 and ._~-")
        info = await registrations.add(info, caller_of(request))
        location = f"{request.url.path}/{info.app_mobility_service_id}"
        return answer(info, 201, location=location, tagged=True)

    @routes.get("/{registration_id}")
    async def show(registration_id: str, request: Request) -> Response:
        return answer(registrations.get(registration_id, caller_of(request)), tagged=True)

    @routes.put("/{registration_id}")
    async def change(registration_id: str, request: Request) -> Response:
        before = registrations.get(registration_id, caller_of(request))
        info = await registration(request)
        check_match(request, before)
        if info.app_mobility_service_id not in ("", registration_id):
            raise Problem(422, f"the body is of {info.app_mobility_service_id!r}, the address of {registration_id!r}")
        info = msgspec.structs.replace(info, app_mobility_service_id=registration_id)
        return answer(await registrations.change(info, caller_of(request)), tagged=True)

    @routes.delete("/{registration_id}")
    async def remove(registration_id: str, request: Request) -> Response:
        await registrations.remove(registration_id, caller_of(request))
        return nothing()

    @routes.post("/{registration_id}/deregister_task")
    @routes.post("/{registration_id}/deregisterTask")
    async def deregister(registration_id: str, request: Request) -> Response:
        """The standard's text and its test suites write the name differently."""
        await registrations.remove(registration_id, caller_of(request))
        return nothing()

    return routes


def _subscription_routes(mobility: Mobility, url: str) -> APIRouter:
    routes = router(f"{PREFIX}/subscriptions", JSON)
    subscriptions = mobility.subscriptions

    async def put(request: Request, subscription_id: str, *, new: bool) -> AnySubscription:
        body = modern(await read_json(request))
        kind = body.get("subscriptionType") if isinstance(body, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            raise BadInput(f"subscriptionType {kind!r} is none: use {' or '.join(KINDS)}")
        value = convert(body, KINDS[kind])
        href = f"{base_url(request, url)}{PREFIX}/subscriptions/{subscription_id}"
        terms, websocket = terms_of(
            subscription_id, kind, href, callback=value.callback_reference, websocket=value.websock_notif_config,
            deadline=value.expiry_deadline,
        )  # fmt: skip
        links = SelfLink(this=LinkType(href=href))
        value = msgspec.structs.replace(value, links=links, websock_notif_config=websocket)
        if isinstance(value, MobilityProcedureSubscription) and not value.filter_criteria.mobility_status:
            criteria = msgspec.structs.replace(value.filter_criteria, mobility_status=(MobilityStatus.TRIGGERED,))
            value = msgspec.structs.replace(value, filter_criteria=criteria)  # what the specification's file demands
        subscription = await subscriptions.put(terms, value, caller_of(request), new=new)
        if kind == ADJACENT:
            await mobility.look_around([subscription])
        if value.request_test_notification is True:
            subscriptions.test(subscription)
        return value

    @routes.get("")
    async def find(request: Request) -> Response:
        asked = request.query_params.get("subscriptionType", "")
        kind = ASKED.get(asked, asked)
        if kind not in KINDS:
            raise BadInput(f"subscriptionType {asked!r} is none: use {' or '.join(ASKED)}")
        return answer(
            listed(
                f"{base_url(request, url)}{PREFIX}/subscriptions",
                subscriptions.of_kind(kind, caller=caller_of(request)),
            )
        )

    @routes.post("")
    async def subscribe(request: Request) -> Response:
        subscription_id = new_id()
        value = await put(request, subscription_id, new=True)
        return answer(value, 201, location=f"{request.url.path}/{subscription_id}", tagged=True)

    @routes.get("/{subscription_id}")
    async def show(subscription_id: str, request: Request) -> Response:
        return answer(subscriptions.get(subscription_id, caller=caller_of(request)).value, tagged=True)

    @routes.put("/{subscription_id}")
    async def change(subscription_id: str, request: Request) -> Response:
        check_match(request, subscriptions.get(subscription_id, caller=caller_of(request)).value)
        return answer(await put(request, subscription_id, new=False), tagged=True)

    @routes.delete("/{subscription_id}")
    async def remove(subscription_id: str, request: Request) -> Response:
        await subscriptions.remove(subscription_id, caller=caller_of(request))
        return nothing()

    return routes


def _other_routes(mobility: Mobility) -> APIRouter:
    routes = router(PREFIX, JSON)

    @routes.get("/queries/adjacent_app_instances")
    async def adjacent(request: Request) -> Response:
        items: list[dict[str, Any]] = [
            msgspec.to_builtins(info) for info in await mobility.adjacent(caller_of(request))
        ]
        return answer(select(items, request.query_params, NEIGHBOUR))

    @routes.post("/uri_provided_by_subscriber")
    async def elsewhere() -> Response:
        raise not_found("this address stands for a subscriber's own, where notifications go: nothing is served here")

    add_termination(routes)
    return routes


def add_termination(routes: APIRouter) -> None:
    """MEC 011's notice that an application instance stops. Of the interfaces themselves nobody stops one: the notice is
    written to the log, and what was subscribed goes on until it is removed or ends."""

    @routes.post("/notifications/mec011/appTermination")
    async def terminated(request: Request) -> Response:
        notice = await read(request, AppTerminationNotification)
        log.info("an application is stopped", action=notice.operation_action[:40])
        return nothing()
