"""Nodes, and the controller itself."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from whimbrel import __version__
from whimbrel.controller.http.answers import AGENT, answer_json, answers
from whimbrel.controller.region import Region
from whimbrel.controller.views import Health, NodeView
from whimbrel.model.node import ComputingPower


def node_routes(region: Region) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["nodes"])

    @router.get("/health", **answers(Health))
    async def health() -> Response:
        """The controller answers; says nothing about the agents."""
        return answer_json(Health(version=__version__, nodes=len(region.nodes)))

    @router.get("/nodes", **answers(list[NodeView]))
    async def nodes() -> Response:
        """All nodes, live."""
        return answer_json(await region.views())

    @router.get("/nodes/{name}", **answers(NodeView, errors=(404,)))
    async def node(name: str) -> Response:
        """One node, live."""
        return answer_json(await region.view(name))

    @router.post("/nodes/{name}/benchmark", **answers(ComputingPower, errors=(404, *AGENT)))
    async def benchmark(name: str) -> Response:
        """Measure the computing power of an edge node again."""
        return answer_json(await region.measure_power(name))

    return router
