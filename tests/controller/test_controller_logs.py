"""What the logs are told of requests, and what not: no token, no session, no secret of a path."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request

from whimbrel.controller.access import Access, ApiConfig
from whimbrel.controller.http.errors import add_error_handlers
from whimbrel.controller.http.guard import COOKIE, Guard
from whimbrel.controller.http.observe import Observe
from whimbrel.controller.listen import Listen
from whimbrel.controller.metrics import Metrics
from whimbrel.logs import MOST_FRAMES, Format, configure

TOKEN, SESSION, SECRET = "whim_a-token", "a-session", "a-secret"


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def deeper(left: int) -> None:
    if left == 0:
        raise RuntimeError("a mistake of ours")
    deeper(left - 1)


def app() -> FastAPI:
    made = FastAPI()

    @made.post("/v1/thing")
    async def thing(request: Request) -> None:
        """Its frame has the request, and so what came with it."""
        headers: dict[str, Any] = dict(request.headers)
        assert headers
        deeper(3 * MOST_FRAMES)

    @made.post("/rni/notifications/{secret}")
    async def notified(secret: str) -> None:
        if secret == "fail" + SECRET:
            deeper(1)

    @made.post("/v1/services/{name}")
    async def service(name: str) -> None:
        pass

    add_error_handlers(made)
    made.add_middleware(Guard, access=Access(()), api=ApiConfig(), listen=Listen(path="/x"))
    made.add_middleware(Observe, metrics=Metrics.__new__(Metrics))
    return made


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_request_that_fails_is_logged_without_what_it_came_with(
    form: Format, logging_as_before: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metrics, "request", lambda *_: None)
    configure(form)
    headers = {"Authorization": f"Bearer {TOKEN}", "Cookie": f"{COOKIE}={SESSION}"}
    transport = httpx.ASGITransport(app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as http:
        failed = await http.post("/v1/thing")
        assert failed.status_code == 500
        assert "a mistake" not in failed.text, "what an error says is for the log only"
        assert "log" in failed.json()["detail"]
        assert (await http.post(f"/rni/notifications/fail{SECRET}")).status_code == 500
        assert (await http.post(f"/rni/notifications/{SECRET}")).status_code == 200
        assert (await http.post("/v1/services/one")).status_code == 200
    told = capsys.readouterr().err
    assert "a mistake of ours" in told
    assert "/v1/services/one" in told
    assert "deeper" in told, "where it happened"
    assert told.count("deeper(left - 1)") + told.count('"deeper"') <= 2 * MOST_FRAMES
    for secret in (TOKEN, SESSION, SECRET):
        assert secret not in told
    if form == "json":
        assert all(json.loads(line) for line in told.splitlines())


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_library_logs_of_an_error_has_no_local_variables(
    form: Format, logging_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(form)
    password = TOKEN
    try:
        deeper(len(password))
    except RuntimeError as error:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=error)
        structlog.get_logger().error("a request failed", exc_info=error)
    told = capsys.readouterr().err
    assert "a request failed" in told
    assert TOKEN not in told
