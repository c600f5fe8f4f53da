"""Results of finished experiments."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response

from whimbrel.controller.experiments import Experiment, Experiments
from whimbrel.controller.http.answers import answer_json, answers, streams

HEADERS = {
    # A picture may be SVG, which may hold scripts: none of them runs.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def experiment_routes(experiments: Experiments) -> APIRouter:
    router = APIRouter(prefix="/v1/experiments", tags=["experiments"])

    @router.get("", **answers(list[Experiment]))
    async def list_experiments() -> Response:
        """What is in the folder `experiments_dir`, the newest first; nothing where none is configured."""
        return answer_json(await asyncio.to_thread(experiments.all))

    @router.get("/files/{path:path}", **streams("*/*", "The file", errors=(404,)))
    async def result(path: str) -> Response:
        """A picture, a table or the figures of an experiment."""
        content, media_type = await asyncio.to_thread(experiments.file, path)
        return Response(content, media_type=media_type, headers=HEADERS)

    return router
