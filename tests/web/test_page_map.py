"""The page's map and what is told of it: names find room or go, users are reached by keys, a reader is offered nothing
that a role may not do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from fakes import FakeRegion
from live_controller import LiveController, asking
from marks import thorough
from tests.web.browser import LAPTOP, PHONE, Tab, dashboard_of, until
from tests.web.test_page_parts import record, region, show

TOKENS = {"read": "a-token-to-look", "operate": "a-token-to-act"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with FakeRegion() as fakes:
        live = LiveController(fakes, tmp_path_factory.mktemp("ctl"))
        with dashboard_of(live) as found:
            yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard of a controller that asks who one is."""
    with FakeRegion() as fakes:
        live = asking(fakes, tmp_path_factory.mktemp("guarded"), TOKENS)
        with dashboard_of(live) as found:
            yield found


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    opened = Tab(chromium)
    yield opened
    try:
        assert opened.errors == []
    finally:
        opened.close()


def crowded() -> dict[str, Any]:
    """Six sites in two rows, whose servers have two services each, or none."""
    nodes: list[dict[str, Any]] = []
    stations: list[dict[str, Any]] = []
    services: list[dict[str, Any]] = []
    for number in range(6):
        at = {"x_m": number % 3 * 100.0, "y_m": number // 3 * 100.0}
        name = f"edge-{number + 1}"
        nodes.append({"name": name, "role": "edge", "up": True, "services": [], **at})
        stations.append({"name": f"cell-{number + 1}", "gateway": "", "zone": "zone-1", "reach_m": 70.0, **at})
        services += [{"name": f"service-of-{name}-{one}", "node": name, "state": "running"} for one in range(2)]
    return region(nodes=nodes, base_stations=stations, services=services)


LAID = """async ([told, apart_m]) => {
  const { placesOf } = await import('./js/places.js');
  const { layout } = await import('./js/map_layout.js');
  const { View } = await import('./js/map_view.js');
  const view = new View(document.createElement('div'), () => {});
  const places = placesOf(told.nodes, told.base_stations);
  view.resize(900, 500, { left: 80, right: 120, top: 100, bottom: 100 });
  view.setBounds({ ...places.bounds, x1: places.bounds.x0 + (places.bounds.x1 - places.bounds.x0) * apart_m });
  const width = (words) => words.length * 7;
  const { servers, boxes } = layout(view, places, told.services, width);
  const told_of = servers.map((one) => ({ label: one.label, lines: one.lines }));
  return { servers: told_of, boxes: boxes.filter((one) => !one.soft) };
}"""


def overlaps(boxes: list[dict[str, float]]) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i, a in enumerate(boxes)
        for j, b in enumerate(boxes)
        if i < j and a["x1"] > b["x0"] and a["x0"] < b["x1"] and a["y1"] > b["y0"] and a["y0"] < b["y1"]
    ]


def test_close_servers_have_a_count_for_their_services(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region())])
    wide = page.evaluate(LAID, [crowded(), 1.0])
    assert wide["servers"][0]["lines"] == ["service-of-edge-1-0", "service-of-edge-1-1"]
    assert overlaps(wide["boxes"]) == []
    close = page.evaluate(LAID, [crowded(), 2.0])  # half as much room for each
    assert {one["label"] for one in close["servers"]} >= {"edge-2 · 2", "edge-5 · 2"}
    assert overlaps(close["boxes"]) == []


def test_an_arcs_name_that_finds_no_room_is_hidden(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region())])
    spots = page.evaluate(
        """async () => {
          const { spotFor } = await import('./js/map_arcs.js');
          const arc = { x0: 40, y0: 200, cx: 180, cy: 60, x1: 320, y1: 200 };
          const view = { width: 360, height: 300 };
          const all = { x0: 0, x1: 360, y0: 0, y1: 300 };
          return [spotFor(arc, 'film-anna · 251 ms frozen', [all], view),
                  spotFor(arc, 'film-anna · 251 ms frozen', [{ ...all, soft: true }], view)];
        }"""
    )
    assert spots[0] is None
    assert spots[1] is not None, "a base station's name may be covered"


@pytest.mark.parametrize("size", [PHONE, *thorough(LAPTOP)], ids=["phone", "laptop"])
def test_the_names_of_arcs_lie_apart_and_nothing_is_under_the_search_box(
    chromium: Browser, address: str, size: dict[str, int]
) -> None:
    tab = Tab(chromium, size=size)
    try:
        moves = [record(id=f"m-{n}", service=f"film-of-anna-{n}", source="edge-1", destination=f"edge-{n + 2}",
                        outcome="running", started_unix_s=time.time(), phases=[]) for n in range(4)]  # fmt: skip
        page = show(tab, address, [("region", crowded() | {"migrations": moves})])
        until(page, "() => document.querySelectorAll('.arc-name').length === 4")
        boxes = page.evaluate(
            """() => [...document.querySelectorAll('.arc-name:not([hidden]), #map .find, #map .zoom, #map .legend')]
              .map((one) => one.getBoundingClientRect())
              .map((b) => ({ x0: b.left, x1: b.right, y0: b.top, y1: b.bottom }))"""
        )
        assert len(boxes) > 3, "one at least has a name"
        assert overlaps(boxes) == []
        assert tab.errors == []
    finally:
        tab.close()


def user(name: str) -> dict[str, Any]:
    return {"name": name, "x_m": 30.0, "y_m": 0.0, "serving": "cell-a", "state": "connected", "delay_ms": 5.0}


def test_users_are_chosen_by_keys_and_told_to_who_cannot_see(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region(users=[user(f"ue-{n}") for n in range(3)]))])
    map_ = page.locator("#map-live")
    expect(map_).to_have_attribute("role", "application")
    until(page, "() => document.getElementById('fact-users').textContent === '3'")
    help_ids = map_.get_attribute("aria-describedby") or ""
    assert "[ and ]" in page.locator(f"#{help_ids.split()[0]}").inner_text()
    map_.focus()
    for key, name in (("]", "ue-0"), ("]", "ue-1"), ("[", "ue-0"), ("[", "ue-2"), ("]", "ue-0")):
        page.keyboard.press(key)
        expect(page.locator("#user-title")).to_have_text(name)
        expect(page.locator("#map-said")).to_have_text(f"{name}: connected, at cell-a")


def test_the_users_are_drawn(tab: Tab, address: str) -> None:
    """By a worker, so it is seen in the picture only."""
    at = [user("ue-1") | {"x_m": 60.0, "y_m": 0.0}]
    page = show(tab, address, [("region", region(users=at, base_stations=[]))])
    until(page, "() => document.getElementById('fact-users').textContent === '1'")
    map_ = page.locator("#map")
    deadline = time.monotonic() + 20
    before = map_.screenshot()
    page.evaluate("document.getElementById('map-live').style.visibility = 'hidden'")
    while map_.screenshot() == before:
        page.evaluate("document.getElementById('map-live').style.visibility = ''")
        assert time.monotonic() < deadline, "nothing is drawn on the users' canvas"
        before = map_.screenshot()
        page.evaluate("document.getElementById('map-live').style.visibility = 'hidden'")


def test_the_log_is_read_aloud_only_to_who_asks_for_it(tab: Tab, address: str) -> None:
    page = show(tab, address, [("region", region())])
    log = page.locator("#log")
    expect(log).to_have_attribute("aria-live", "off")
    page.get_by_label("read aloud").check()
    expect(log).to_have_attribute("aria-live", "polite")


def test_views_are_drawn_at_their_own_pace(tab: Tab, address: str) -> None:
    """A slow view does not hold up a quick one, a reader's doing is drawn by all at once, and nothing is forgotten."""
    page = show(tab, address, [("region", region())])
    drawn = page.evaluate(
        """async () => {
          const { Frames } = await import('./js/frames.js');
          const frames = new Frames();
          const drawn = { quick: 0, slow: 0 };
          let last = 0;
          frames.on(['a'], () => { drawn.quick += 1; });
          frames.on(['a', 'b'], () => { drawn.slow += 1; last = value; }, { least_ms: 60_000 });
          let value = 0;
          const wait = (wanted) => new Promise((resolve) => {
            const look = () => (wanted() ? resolve() : setTimeout(look, 10));
            look();
          });
          frames.touch(['a']);
          await wait(() => drawn.slow === 1);
          for (value = 1; drawn.quick < 3; value += 1) {
            frames.touch(['a']);
            await new Promise((resolve) => setTimeout(resolve, 20));
          }
          const held = drawn.slow;
          frames.soon();
          await wait(() => drawn.slow === 2);
          return [held, last === value, drawn.quick < value];
        }"""
    )
    assert drawn == [1, True, True]


def offered(page: Page) -> list[str]:
    page.locator("#tab-services").click()
    found = page.locator(".acts:visible").all_inner_texts()
    return sorted(set(found))


@pytest.mark.parametrize(
    ("role", "wanted"),
    [("read", []), ("operate", ["Cancel migration", "Migrate", "Remove", "Run service"])],
)
def test_a_role_is_offered_what_it_may_do(guarded: str, chromium: Browser, role: str, wanted: list[str]) -> None:
    tab = Tab(chromium)
    try:
        told = crowded() | {"migrations": [record(outcome="running", phases=[])]}
        page = show(tab, guarded, [("region", told)])
        dialog = page.locator("#dialog-token")
        dialog.get_by_label("Token").fill(TOKENS[role])
        dialog.get_by_role("button", name="Continue").click()
        expect(dialog).to_be_hidden()
        tab.errors.clear()  # the browser notes an answer of 401 by itself
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-role", role)
        expect(page.locator("#moves .name")).to_have_text("film-anna")
        assert offered(page) == wanted
    finally:
        tab.close()
