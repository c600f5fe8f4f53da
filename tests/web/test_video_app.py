"""The video service of paper `relocation`: a viewer in a real browser notices nothing of three moves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect

from marks import MANY
from tests.web.browser import Tab, launched, until
from tests.web.conftest import EDGES, Lab
from whimbrel.model.migration import Outcome
from whimbrel.workloads.catalogue import build_workload

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="moving containers needs root")]
LONGEST_STALL_MS = 1000.0
# In the page, for as long as it is there: a reload would begin anew. A stall is a time in which the film ought to play
# and its clock stands still.
WATCHER = """() => {
  const film = document.getElementById("film");
  const seen = window.seen = { loads: 1, longest_ms: 0, waiting: 0, errors: 0 };
  let place = film.currentTime, moved = performance.now();
  film.addEventListener("waiting", () => { seen.waiting += 1; });
  film.addEventListener("error", () => { seen.errors += 1; });
  setInterval(() => {
    const now = performance.now();
    if (film.currentTime !== place || film.paused) { place = film.currentTime; moved = now; }
    seen.longest_ms = Math.max(seen.longest_ms, now - moved);
  }, 20);
}"""


@pytest.fixture(scope="module")
def film(lab: Lab) -> Iterator[str]:
    """The service's address for a browser in the user's place."""
    image = build_workload("videoapp").reference
    status = lab.controller.run_service("film", image, EDGES[0], ports=["8080/tcp"], env=["USERS=ann:tea & <scones>"])
    yield f"http://{status.spec.address.split('/')[0]}:8080/"
    lab.controller.remove_service("film")


@pytest.fixture(scope="module")
def there(lab: Lab, playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser in the user's network namespace."""
    with launched(playwright, tmp_path_factory.mktemp("there"), lab.user_namespace) as browser:
        yield browser


def open_when_ready(page: Page, address: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            page.goto(address)
            return
        except Exception:
            assert time.monotonic() < deadline, "the service does not answer"
            time.sleep(0.1)


def session(page: Page) -> dict[str, float | str]:
    told: dict[str, float | str] = page.evaluate("fetch('/api/session').then((answer) => answer.json())")
    return told


def watched_s(page: Page) -> float:
    return float(session(page)["watched_s"])


def test_a_viewer_notices_nothing_of_moves(lab: Lab, film: str, there: Browser, tab: Tab) -> None:
    """`tab` is the dashboard beside it."""
    viewer = Tab(there)
    page = viewer.page
    try:
        open_when_ready(page, film)
        viewer.errors.clear()  # of attempts while it started
        page.get_by_label("User").fill("ann")
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("do not go together")
        viewer.errors.clear()  # the browser notes the answer 403 by itself
        page.get_by_label("Password").fill("tea & <scones>")
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#user")).to_have_text("ann")
        until(page, "() => document.getElementById('film').currentTime > 2")
        page.evaluate(WATCHER)
        cookie = page.context.cookies()[0]["value"]
        begun, loads = session(page), page.evaluate("performance.timeOrigin")
        way = (EDGES[1], EDGES[2], EDGES[0]) if MANY else (EDGES[1], EDGES[0])
        for edge in way:
            before = page.evaluate("document.getElementById('film').currentTime")
            watched_before = watched_s(page)
            record = lab.controller.migrate("film", edge)
            assert (record.outcome, record.error) == (Outcome.DONE, "")
            shown = tab.page.locator(f"#moves [data-id='{record.id}']")
            expect(shown.locator(".chip")).to_have_text("done")
            expect(shown.locator(".way")).to_contain_text(f"{record.source} → {edge}")
            until(page, "before => document.getElementById('film').currentTime > before + 2", before)
            until(page, "() => document.getElementById('word').textContent === ''")
            deadline = time.monotonic() + 20
            while watched_s(page) < watched_before + 1:
                assert time.monotonic() < deadline, "the watched time stands still"
                time.sleep(0.1)
        seen, now = page.evaluate("window.seen"), session(page)
        assert seen["longest_ms"] < LONGEST_STALL_MS, seen
        assert (seen["errors"], page.evaluate("performance.timeOrigin")) == (0, loads), "no error, no reload"
        assert now["user"] == "ann"
        assert page.context.cookies()[0]["value"] == cookie
        assert float(now["watched_s"]) > float(begun["watched_s"]) + len(way)
        assert float(now["session_age_s"]) > float(begun["session_age_s"]), "the same session, not a new one"
        assert lab.controller.service("film").migrations == len(way)
        assert viewer.errors == []
        page.reload()  # now a viewer reloads: it goes on where it was
        expect(page.locator("#user")).to_have_text("ann")
        until(page, "then => document.getElementById('film').currentTime >= then - 2", now["position_s"])
    finally:
        viewer.close()
