"""Parts of the page in a browser, each by itself: what they draw and where, told by a stream that a test makes."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from fakes import FakeRegion
from live_controller import LiveController
from tests.web.browser import PHONE, Tab, dashboard_of, until

# What is drawn on canvases as text; it is no part of the document.
WORDS = """window.drawn = [];
const fill = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
  window.drawn.push(String(text));
  return fill.call(this, text, ...rest);
};"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two experiments, with a picture each."""
    folder = tmp_path_factory.mktemp("results")
    for name, figure in (("fast", "figure-4"), ("delta", "table-1")):
        (folder / name).mkdir()
        (folder / name / f"{figure}.png").write_bytes(png(7, 5))
        (folder / name / "report.md").write_text("# what was found\n")
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, results: Path) -> Iterator[str]:
    """The dashboard of a controller that knows of the results."""
    directory = tmp_path_factory.mktemp("ctl")
    with FakeRegion() as region:
        live = LiveController(region, directory)
        config = directory / "controller.toml"
        config.write_text(f'experiments_dir = "{results}"\n{config.read_text()}')
        with dashboard_of(live) as found:
            yield found


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    opened = Tab(chromium)
    opened.page.add_init_script(WORDS)
    yield opened
    try:
        assert opened.errors == []
    finally:
        opened.close()


def png(width: int, height: int) -> bytes:
    """A picture in one grey (PNG, RFC 2083)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (b"\0" + b"\x80" * width) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def show(tab: Tab, address: str, events: list[tuple[str, Any]], samples: list[Any] | None = None) -> Page:
    """The page, told `events` and nothing else, and `samples` of any user."""
    tab.page.route("**/v1/users/*/samples", lambda route: route.fulfill(json={"user": "any", "samples": samples or []}))
    stream = "".join(f"event: {event}\ndata: {json.dumps(data)}\n\n" for event, data in events)
    tab.page.route(
        "**/v1/events",
        lambda route: route.fulfill(content_type="text/event-stream", body=stream + "retry: 600000\n\n"),
    )
    tab.page.goto(address)
    return tab.page


def record(**changes: Any) -> dict[str, Any]:
    phases = [("rounds", 100.0, 644.0), ("freeze", 744.0, 286.0), ("freeze.hold", 744.0, 29.0),
              ("freeze.restore", 800.0, 149.0), ("switch", 1030.0, 39.0)]  # fmt: skip
    return {
        "id": "m-1", "service": "film-anna", "source": "edge-a", "destination": "edge-b", "strategy": "hybrid",
        "outcome": "done", "reason": "the handover comes in 1.2 s: " + "memory crosses ahead, " * 12,
        "started_unix_s": time.time(), "total_ms": 2150.0, "freeze_ms": 251.0,
        "phases": [{"name": name, "start_ms": start, "duration_ms": took} for name, start, took in phases],
        "rounds": [{"bytes_sent": 4.5e6, "dirty_pages": 327}],
    } | changes  # fmt: skip


def region(**changes: Any) -> dict[str, Any]:
    nodes = [{"name": f"edge-{name}", "role": "edge", "up": True, "x_m": x, "y_m": y, "services": []}
             for name, x, y in (("a", 0.0, 0.0), ("b", 120.0, 0.0))]  # fmt: skip
    station = {"name": "cell-a", "gateway": "cell-a", "zone": "edge-a", "x_m": 0.0, "y_m": 0.0, "reach_m": 80.0}
    return {"unix_s": time.time(), "nodes": nodes, "base_stations": [station], "users": [], "services": [],
            "migrations": [], "decisions": [], "settings": {}} | changes  # fmt: skip


def test_pictures_of_experiments_are_shown_by_their_figures_names(tab: Tab, address: str) -> None:
    page = tab.page
    page.goto(address)
    page.locator("#tab-experiments").click()
    expect(page.locator("#experiments h3")).to_have_count(2)
    pictures = page.locator("#experiments img")
    for number in range(2):
        pictures.nth(number).scroll_into_view_if_needed()
    until(page, "() => [...document.querySelectorAll('#experiments img')].every((one) => one.naturalWidth === 7)")
    assert sorted(page.locator("#experiments .caption").all_inner_texts()) == ["figure 4", "table 1"]
    page.get_by_role("button", name="Show fast: figure 4 large").click()
    expect(page.locator("#picture-title")).to_have_text("fast: figure 4")
    until(page, "() => document.querySelector('[data-picture]').naturalWidth === 7")


def test_two_figures_of_a_freeze_are_told_apart_and_the_reason_is_to_be_read(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region()), ("migration", {"record": record()})])
    shown = page.locator("#moves [data-id='m-1']")
    expect(shown.locator(".figure")).to_have_text("251 ms of 2.15 s")
    words = shown.locator(".freeze-words")
    expect(words).to_contain_text("Frozen 251 ms: from the service's last instruction at the source to its first at")
    expect(words).to_contain_text("The phase “freeze” around it took 286 ms: hold 29.0 ms, restore 149 ms.")
    reason = shown.locator(".reason")
    expect(reason).to_contain_text("memory crosses ahead")
    inside = """() => {
      const [why, panel] = [".reason", ".moves-panel"].map((one) => document.querySelector(one))
        .map((one) => one.getBoundingClientRect());
      return why.height > 30 && why.top >= panel.top && why.bottom <= panel.bottom;
    }"""
    until(page, inside)


def test_a_zone_is_called_one(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region())])
    until(page, "() => window.drawn.includes('zone edge-a')")
    assert page.evaluate("window.drawn.includes('edge-a')"), "the server's own name"


def test_a_charts_axis_begins_with_its_data(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region())])
    told = page.evaluate(
        "async () => { const c = await import('./js/charts.js'); return [2, 20, 45, 500].map((ago) => "
        "{ const span = c.spanOf(1000 - ago, 1000); return [span, c.ticksOf(span)]; }); }"
    )
    assert told == [[10, [7.5, 5, 2.5]], [20, [15, 10, 5]], [45, [40, 30, 20, 10]], [120, [90, 60, 30]]]


def test_a_page_that_is_opened_later_knows_what_the_charts_would_show(tab: Tab, address: str) -> None:
    user = {"name": "ue-1", "x_m": 30.0, "y_m": 0.0, "serving": "cell-a", "state": "connected", "delay_ms": 7.0}
    now_s = time.time()
    past = [[now_s - ago, 5.0, -60.0] for ago in range(90, 1, -1)]
    page = show(tab, address, [("region", region(users=[user]))], [*past, "no sample", [None, 1, 2], [now_s - 1]])
    expect(page.locator("#user-title")).to_have_text("ue-1")
    until(page, "() => window.drawn.includes('−60 s')")  # else the axis would begin with the page
    told = page.evaluate(
        """async () => {
          const { Track } = await import('./js/tracks.js');
          const track = new Track();
          track.sample(100, 7, -70);
          track.before([[98, 5, -60], [99, null, -61], [100, 1, 1], [103, 1, 1]]); // what is known here stands
          for (let i = 0; i < 1000; i += 1) track.sample(101 + i, 1, 1);
          track.before([[99, 5, -60]]); // no room: nothing of now goes
          const found = [];
          track.series('delay_ms', 0, (t_s) => found.push(t_s));
          return [found[0], found.at(-1), found.length];
        }"""
    )
    assert told == [621, 1100, 480]


def test_the_whole_way_of_a_user_stays_however_long_it_is(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region())])
    way = page.evaluate(
        """async () => {
          const { Track } = await import('./js/tracks.js');
          const track = new Track();
          for (let i = 0; i <= 20000; i += 1) track.go(i / 10, 5);
          for (let i = 0; i < 50; i += 1) track.go(2000, 5); // it stands still
          const way = [];
          track.way((x) => way.push(x));
          return way;
        }"""
    )
    assert way[0] == 0.0, "its beginning"
    assert way[-1] == 2000.0, "where it is"
    assert 250 <= len(way) <= 600
    steps = [b - a for a, b in pairwise(way)]
    assert min(steps[:-1]) > 0
    assert max(steps) < 2000 / 100, "no part is left out"


def test_the_name_of_an_arc_covers_no_other_and_stays_on_the_map(chromium: Browser, address: str) -> None:
    tab = Tab(chromium, size=PHONE)
    try:
        page = show(tab, address, [("region", region())])
        spot = page.evaluate(
            """async () => {
              const { spotFor } = await import('./js/map_arcs.js');
              const arc = { x0: 40, y0: 200, cx: 180, cy: 60, x1: 320, y1: 200 };
              const taken = [{ x0: 120, x1: 240, y0: 90, y1: 160 }];
              return spotFor(arc, 'film-anna · 251 ms frozen', taken, { width: 360, height: 300 });
            }"""
        )
        half = 25 * 6.8 / 2 + 8
        assert spot["y"] + 11 < 90 or spot["y"] - 11 > 160 or spot["x"] + half < 120 or spot["x"] - half > 240
        assert half <= spot["x"] <= 360 - half
        assert 11 <= spot["y"] <= 289
        assert tab.errors == []
    finally:
        tab.close()


def test_a_page_that_is_opened_later_knows_the_way_a_user_came(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region())])
    user = {"name": "ue-1", "x_m": 30.0, "y_m": 0.0, "serving": "cell-a", "state": "connected"}
    told = region(users=[user], ways={"ue-1": [[0.0, 0.0], [10.0, 0.0], "far", [20.0, 0.0]], "gone": [[1, 1]]})
    found = page.evaluate(
        """async (told) => {
          const { Store } = await import('./js/store.js');
          const store = new Store({ touch() {}, soon() {} });
          store.setRegion(told);
          store.setRegion(told); // after a loss: not twice
          const way = [];
          store.users.get('ue-1').track.way((x) => way.push(x));
          return [way, store.users.size];
        }""",
        told,
    )
    assert found == [[0.0, 10.0, 20.0, 30.0], 1]
