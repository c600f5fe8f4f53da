"""The page with a controller that is not always kind: it goes away, it asks for a token, it tells scripts for names."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from playwright.sync_api import Browser, Route, expect

from fakes import FakeRegion
from live_controller import LiveController, asking
from tests.web.browser import Tab, base_of, dashboard
from whimbrel.controller.planning.outcome import concluded
from whimbrel.model.decision import Decision, Times
from whimbrel.model.migration import MigrationRecord, Outcome, Phase
from whimbrel.model.radio import HandoverRecord, UserNote

SCRIPT = "<script>window.broken=1</script>"
IMAGE = '<img src=x onerror="window.broken=1">'
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveController]:
    with FakeRegion() as region:
        live = LiveController(region, Path(tmp_path_factory.mktemp("ctl")))
        live.start()
        yield live
        live.stop()


@pytest.fixture(scope="module")
def address(controller: LiveController) -> Iterator[str]:
    """The dashboard of it; a page that is opened anew knows nothing of the test before."""
    with dashboard(controller.address) as found:
        yield found


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


def test_scripts_for_names_are_shown_as_text(address: str, chromium: Browser) -> None:
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

    tab = Tab(chromium)
    try:
        tab.page.route("**/v1/events", events_of)
        hostile = {"user": SCRIPT, "samples": [SCRIPT, [SCRIPT, IMAGE, {}], None, [1.7e9]]}
        tab.page.route("**/v1/users/*/samples", lambda route: route.fulfill(json=hostile))
        tab.page.route("**/v1/log?**", lambda route: route.fulfill(json=[{"id": SCRIPT}, None, 7]))
        tab.page.route(
            "**/v1/experiments",
            lambda route: route.fulfill(
                json=[{"name": SCRIPT, "figure": IMAGE, "pictures": [], "files": ["../../etc/passwd", SCRIPT]}]
            ),
        )
        tab.page.goto(address)
        expect(tab.page.locator("#log .text", has_text=IMAGE)).to_have_count(1)
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


def note(text: str) -> UserNote:
    return UserNote(user="ue-1", unix_s=time.time(), elapsed_s=0.0, kind="note", text=text)


def test_the_log_tells_what_was_before_the_page_was_opened(
    controller: LiveController, address: str, chromium: Browser
) -> None:
    with controller.client() as client:
        client.tell(note("before the page"))
        tab = Tab(chromium)
        try:
            tab.page.goto(address)
            log = tab.page.locator("#log")
            expect(log.get_by_text("before the page")).to_have_count(1)
            client.tell(note("while it is open"))
            expect(log.get_by_text("while it is open")).to_have_count(1)
            # A new stream, not the browser's own return to the old one: it has no last id to send.
            tab.page.context.set_offline(True)
            client.tell(note("while it is away"))
            tab.page.context.set_offline(False)
            tab.page.evaluate("dispatchEvent(new Event('online'))")
            expect(log.get_by_text("while it is away")).to_have_count(1)
            texts = log.locator(".text").all_inner_texts()
            times = log.locator("time").all_inner_texts()
            assert len(texts) == len(set(zip(times, texts, strict=True))), "no line is there twice"
            mine = [one.split(": ")[1] for one in texts if one.startswith("user ue-1: ")]
            assert mine == ["while it is away", "while it is open", "before the page"], "the newest stands on top"
        finally:
            tab.close()


def decision_of_a_move() -> Decision:
    """As the planner concludes it: it predicted 100 ms for the migration, which took 80, and the handover took 50."""
    began = Decision(
        id="d-1", user="ue-1", service="demo-ue-1", planner="orchestrated", order="coordinated", reason="it walks",
        made_unix_s=1.7e9, from_base_station="gw-1", base_station="gw-2", from_server="n-1", server="n-2",
        predicted=Times(migration_ms=100.0, interruption_ms=160.0),
    )  # fmt: skip
    moved = MigrationRecord(
        id="m-1", service="demo-ue-1", source="n-1", destination="n-2", strategy="hybrid", outcome=Outcome.DONE,
        started_unix_s=1.7e9, freeze_ms=80.0, phases=(Phase(name="freeze", start_ms=1000.0, duration_ms=80.0),),
    )  # fmt: skip
    changed = HandoverRecord(
        user="ue-1", source="gw-1", target="gw-2", reason="ordered", unix_s=1.7e9 + 1.080, elapsed_s=1.0,
        interruption_ms=50.0,
    )  # fmt: skip
    return concluded(began, moved, changed, now_unix_s=1.7e9 + 2)


def test_a_predictions_error_stands_beside_the_figures_it_is_of(address: str, chromium: Browser) -> None:
    decision = decision_of_a_move()
    assert decision.measured is not None
    assert decision.measured.interruption_ms != decision.measured.migration_ms
    stream = f"event: decision\ndata: {msgspec.json.encode(decision).decode()}\n\nretry: 600000\n\n"
    tab = Tab(chromium)
    try:
        tab.page.route("**/v1/events", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
        tab.page.goto(address)
        tab.page.locator("#tab-decisions").click()
        whole = f"{decision.measured.interruption_ms:.0f} ms"
        expect(tab.page.locator("#decisions .why")).to_have_text(
            "it walks — Migration predicted 100 ms, measured 80.0 ms (off by 25 %). "
            f"Interruption predicted 160 ms, measured {whole}."
        )
    finally:
        tab.close()


def test_the_page_comes_back_with_its_controller(controller: LiveController, address: str, chromium: Browser) -> None:
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


def test_a_token_is_asked_for_and_logging_out_ends_all(tmp_path: Path, chromium: Browser) -> None:
    with FakeRegion() as region:
        live = asking(region, tmp_path, {"operate": TOKEN})
        live.start()
        try:
            with dashboard(live.address) as address:
                ask_for_token(Tab(chromium), address)
                log_out_ends_the_stream(live, address)
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
        tab.page.get_by_role("button", name="Log out").click()
        expect(dialog).to_be_visible()
        expect(tab.page.locator("#fact-nodes")).to_have_text("–")
        assert tab.page.evaluate("fetch('v1/region').then((answer) => answer.status)") == 401
    finally:
        tab.close()


def log_out_ends_the_stream(live: LiveController, address: str) -> None:
    with (
        live.client() as client,
        httpx.Client(base_url=base_of(address), timeout=30, trust_env=False, verify=False) as http,
    ):
        assert http.get(address).status_code == 303
        assert http.post("v1/session", json={"token": TOKEN}).status_code == 201
        with http.stream("GET", "v1/events") as stream:
            lines = stream.iter_lines()
            assert any(line == "event: region" for line in lines)
            assert http.delete("v1/session", headers={"X-Whimbrel": "1"}).status_code == 204
            client.tell(note("not for who has gone"))
            for line in lines:  # it ends; it would go on for ever
                assert line not in ("event: alive", "event: log"), "nothing more is told"
        with http.stream("GET", "v1/events", headers={"Authorization": f"Bearer {TOKEN}"}) as stream:
            lines = stream.iter_lines()
            assert any(line == "event: region" for line in lines)
            client.tell(note("for who shows a token"))
            assert any("for who shows a token" in line for line in lines), "a token is no session"


def test_the_relay_is_for_local_names_only(address: str) -> None:
    with httpx.Client(base_url=base_of(address), trust_env=False, verify=False) as http:
        assert http.get(address).status_code == 303
        assert http.get("v1/health").status_code == 200
        evil = http.get("v1/region", headers={"Host": "evil.example"})
        assert evil.status_code == 421
        for hostile in ("http://evil.example", "null"):
            assert http.post("v1/migrations", json={}, headers={"Origin": hostile}).status_code == 403


def test_the_relay_is_for_those_who_were_told_the_address(address: str) -> None:
    """Any user of this machine can connect to its port; the controller's socket is its owner's."""
    with httpx.Client(base_url=base_of(address), trust_env=False, verify=False) as http:
        for way in ("", "v1/region", "?key=", "?key=wrong", "v1/region?key=wrong"):
            answer = http.get(way)
            assert answer.status_code == 403, way
            assert "the address that `whimbrel dashboard` has printed" in answer.text
        key = address.partition("key=")[2]
        for cookie in (f"whimbrel_dashboard_{key[:6]}=wrong", f"another={key}"):
            assert http.get("v1/region", headers={"Cookie": cookie}).status_code == 403
        entered = http.get(address)
        assert (entered.status_code, entered.headers["Location"]) == (303, "/")
        assert "httponly" in entered.headers["Set-Cookie"].lower()
        assert http.get("v1/region").status_code == 200
