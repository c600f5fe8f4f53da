"""Where another's Radio Network Information Service posts its notifications, when the handover port `mec012` subscribed
with an address of ours. The path has a secret that only that service was told."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request
from fastapi.responses import Response

from whimbrel.controller.handovers.mec012 import PATH, Mec012
from whimbrel.controller.mec.http import PROBLEM, not_found, nothing, read_bytes, router


def rnis_routes(port: Mec012) -> list[APIRouter]:
    routes = router(PATH, PROBLEM)

    @routes.post("/{secret}")
    async def notified(secret: str, request: Request) -> Response:
        if not secrets.compare_digest(secret.encode(), port.secret.encode()):
            raise not_found("nobody subscribed with this address")
        port.take(await read_bytes(request))
        return nothing()

    return [routes]
