"""The page with a controller that is not always kind: it goes away, it asks for a token, it tells scripts for names."""

from __future__ import annotations

import hashlib
import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, Route, expect, sync_playwright

from fakes import FakeRegion
from live_controller import LiveController
from tests.web.browser import Tab, dashboard, launched, program

SCRIPT = "<script>window.broken=1</script>"
IMAGE = '<img src=x onerror="window.broken=1">'
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    program()
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def chromium(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with launched(playwright, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveController]:
    with FakeRegion() as region:
        live = LiveController(region, Path(tmp_path_factory.mktemp("ctl")))
        live.start()
        yield live
        live.stop()


def hostile_region() -> dict[str, object]:
    record = {
        "id": SCRIPT,
        "service": IMAGE,
        "source": SCRIPT,
        "destination": IMAGE,
        "strategy": SCRIPT,
        "outcome": "failed",
        "error": IMAGE,
        "reason": SCRIPT,
        "started_unix_s": 1.7e9,
        "total_ms": "no number",
        "freeze_ms": None,
        "phases": [{"name": IMAGE, "start_ms": "x", "duration_ms": 1e308}],
        "rounds": [{"bytes_sent": SCRIPT}],
    }
    return {
        "unix_s": 1.7e9,
        "nodes": [
            {
                "name": SCRIPT,
                "role": "edge",
                "tier": IMAGE,
                "up": False,
                "error": IMAGE,
                "services": [SCRIPT],
                "x_m": "1",
            },
            {"name": IMAGE, "role": "edge", "up": True, "services": None, "cpu_percent": "90"},
            None,
            7,
        ],
        "base_stations": [{"name": IMAGE, "gateway": SCRIPT, "zone": SCRIPT, "x_m": None, "y_m": {}, "reach_m": -5}],
        "users": [
            {"name": SCRIPT, "x_m": 1.0, "y_m": 2.0, "serving": IMAGE, "state": SCRIPT, "service": IMAGE},
            {"name": "__proto__", "x_m": "NaN", "serving": "constructor"},
        ],
        "services": [
            {"name": SCRIPT, "node": SCRIPT, "address": IMAGE, "workload": IMAGE, "state": SCRIPT, "image": SCRIPT}
        ],
        "migrations": [record],
        "decisions": [
            {"id": "1", "user": SCRIPT, "reason": IMAGE, "made_unix_s": "never", "state": IMAGE, "server": SCRIPT}
        ],
        "settings": {"planner": IMAGE, "strategies": [SCRIPT], "version": SCRIPT},
    }


def test_scripts_for_names_are_shown_as_text(controller: LiveController, chromium: Browser) -> None:
    events = [
        ("region", hostile_region()),
        (
            "log",
            {
                "unix_s": 1.7e9,
                "level": SCRIPT,
                "kind": IMAGE,
                "text": IMAGE,
                "cell": SCRIPT,
                "zone": IMAGE,
                "x_m": "far",
            },
        ),
        ("users", [None, "text", {"name": {"an": "object"}}]),
        ("gone", "not a list"),
        ("nonsense", 1),
        ("migration", {"id": IMAGE, "progress": {"phase": SCRIPT}}),
        ("decision", {"id": 1, "user": None}),
    ]
    stream = "".join(f"event: {event}\ndata: {json.dumps(data)}\n\n" for event, data in events)

    def events_of(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=stream + "retry: 600000\n\n")

    with dashboard(controller.address) as address:
        tab = Tab(chromium)
        try:
            tab.page.route("**/v1/events", events_of)
            tab.page.route(
                "**/v1/experiments",
                lambda route: route.fulfill(
                    json=[{"name": SCRIPT, "figure": IMAGE, "pictures": [], "files": ["../../etc/passwd", SCRIPT]}]
                ),
            )
            tab.page.goto(address)
            expect(tab.page.locator("#log .text")).to_have_text(IMAGE)
            for name in ("services", "nodes", "decisions", "experiments"):
                tab.page.locator(f"#tab-{name}").click()
                expect(tab.page.locator(f"#pane-{name}")).to_contain_text(SCRIPT)
            tab.page.locator("#find-user").fill(SCRIPT)
            expect(tab.page.locator("#user-title")).to_have_text(SCRIPT)
            assert tab.page.evaluate("window.broken") is None
            assert tab.page.locator("main script, main img").count() == 0
            assert tab.errors == []
        finally:
            tab.close()


def test_the_page_comes_back_with_its_controller(controller: LiveController, chromium: Browser) -> None:
    with dashboard(controller.address) as address:
        tab = Tab(chromium)
        try:
            tab.page.goto(address)
            state = tab.page.locator("#link-state")
            expect(state).to_have_attribute("data-state", "live")
            controller.kill()
            expect(state).to_have_attribute("data-state", "lost")
            controller.start()
            expect(state).to_have_attribute("data-state", "live", timeout=30_000)
            expect(tab.page.locator("#fact-nodes")).to_have_text("3")
        finally:
            tab.close()


def test_a_token_is_asked_for_and_the_page_goes_on(tmp_path: Path, chromium: Browser) -> None:
    with FakeRegion() as region:
        live = LiveController(region, tmp_path)
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        config = tmp_path / "controller.toml"
        config.write_text(
            f'{config.read_text()}\n[api]\ntokens = [{{ name = "tests", sha256 = "{digest}", role = "operate" }}]\n'
        )
        live.answers = lambda: live.socket.exists()  # type: ignore[method-assign]  # who has no token hears nothing
        live.start()
        try:
            with dashboard(live.address) as address:
                ask_for_token(Tab(chromium), address)
        finally:
            live.stop()


def ask_for_token(tab: Tab, address: str) -> None:
    try:
        tab.page.goto(address)
        dialog = tab.page.locator("#dialog-token")
        expect(dialog).to_be_visible()
        dialog.get_by_label("Token").fill("wrong")
        dialog.get_by_role("button", name="Continue").click()
        expect(dialog.get_by_role("alert")).to_be_visible()
        dialog.get_by_label("Token").fill(TOKEN)
        dialog.get_by_role("button", name="Continue").click()
        expect(dialog).to_be_hidden()
        expect(tab.page.locator("#link-state")).to_have_attribute("data-state", "live")
        assert TOKEN not in tab.page.evaluate("document.cookie + JSON.stringify(localStorage)"), "no script can read it"
        tab.page.reload()
        expect(tab.page.locator("#link-state")).to_have_attribute("data-state", "live")
    finally:
        tab.close()


def test_the_relay_is_for_local_names_only(controller: LiveController) -> None:
    with dashboard(controller.address) as address:
        with urllib.request.urlopen(f"{address}v1/health") as answer:
            assert answer.status == 200
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as conn:
            conn.sendall(b"GET /v1/region HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            assert conn.recv(4096).startswith(b"HTTP/1.1 421 ")
        for hostile in ("http://evil.example", "null"):
            question = urllib.request.Request(
                f"{address}v1/migrations", b"{}", {"Origin": hostile, "Content-Type": "application/json"}
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(question)
            assert refused.value.code == 403
            refused.value.close()
