"""The resources of ``/rni/v2``."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from whimbrel.controller.mec.ams.routes import add_termination
from whimbrel.controller.mec.common import LinkType, SelfLink, TimeStamp
from whimbrel.controller.mec.http import (
    PROBLEM,
    Problem,
    answer,
    base_url,
    caller_of,
    check_match,
    convert,
    not_found,
    nothing,
    read_json,
    router,
)
from whimbrel.controller.mec.listing import listed
from whimbrel.controller.mec.rni.models import (
    ASKED,
    KINDS,
    NOT_SERVED,
    CellChangeSubscription,
    HoStatus,
    MeasRepUeSubscription,
    PlmnInfo,
)
from whimbrel.controller.mec.rni.service import RadioInformation
from whimbrel.controller.mec.subscriptions import new_id, terms_of
from whimbrel.model.errors import BadInput

PREFIX = "/rni/v2"
ADDRESSES = ("ue_ipv4_address", "ue_ipv6_address", "nated_ip_address", "gtp_teid")


def rni_routes(radio: RadioInformation, url: str) -> list[APIRouter]:
    return [_query_routes(radio), _subscription_routes(radio, url)]


def _query_routes(radio: RadioInformation) -> APIRouter:
    routes = router(PREFIX, PROBLEM)

    @routes.get("/queries/plmn_info")
    async def plmn_info(request: Request) -> Response:
        instances = _list(request, "app_ins_id")
        if not instances:
            raise BadInput("app_ins_id is missing: name the application instances that ask")
        now = TimeStamp.now()
        return answer([PlmnInfo(app_instance_id=one, plmn=(radio.plmn,), time_stamp=now) for one in instances])

    @routes.get("/queries/layer2_meas")
    async def layer2_meas(request: Request) -> Response:
        addresses = [one for name in ADDRESSES for one in _list(request, name)]
        return answer(radio.layer2(_list(request, "cell_id"), addresses))

    @routes.get("/queries/rab_info")
    async def rab_info() -> Response:
        raise not_found("radio access bearers are not known here: the region's radio has none")

    @routes.get("/queries/s1_bearer_info")
    async def s1_bearer_info() -> Response:
        raise not_found("S1 bearers are not known here: the region's radio has none")

    add_termination(routes)
    return routes


def _list(request: Request, name: str) -> list[str]:
    """Of a parameter that is given several times, or once with commas."""
    return [one for text in request.query_params.getlist(name) for one in text.split(",") if one]


def _subscription_routes(radio: RadioInformation, url: str) -> APIRouter:
    routes = router(f"{PREFIX}/subscriptions", PROBLEM)
    subscriptions = radio.subscriptions

    async def put(
        request: Request, subscription_id: str, *, new: bool
    ) -> CellChangeSubscription | MeasRepUeSubscription:
        body = await read_json(request)
        kind = body.get("subscriptionType") if isinstance(body, dict) else None
        if isinstance(kind, str) and kind in NOT_SERVED:
            raise Problem(422, f"{kind} is not served: the region's radio does not know what it tells of")
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
        if isinstance(value, CellChangeSubscription) and not value.filter_criteria_assoc_ho.ho_status:
            criteria = msgspec.structs.replace(value.filter_criteria_assoc_ho, ho_status=(HoStatus.COMPLETED,))
            value = msgspec.structs.replace(value, filter_criteria_assoc_ho=criteria)  # MEC 012, table 6.3.2-1
        subscription = await subscriptions.put(terms, value, caller_of(request), new=new)
        if value.request_test_notification is True:
            subscriptions.test(subscription)
        return value

    @routes.get("")
    async def find(request: Request) -> Response:
        asked = request.query_params.get("subscription_type", "")
        kind = ASKED.get(asked, asked)
        if kind and kind not in KINDS and kind not in NOT_SERVED:
            raise BadInput(f"subscription_type {asked!r} is none: use one of {', '.join(ASKED)}")
        caller = caller_of(request)
        found = subscriptions.of_kind(kind, caller=caller) if kind else subscriptions.all(caller)
        return answer(listed(f"{base_url(request, url)}{PREFIX}/subscriptions", found))

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
