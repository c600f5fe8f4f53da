"""The dashboard in a real browser, in front of a real lab: what happens is shown, and can be brought about."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browser import PHONE, Tab
from tests.web.conftest import EDGES, PREFIX, USER, Lab
from whimbrel.model.migration import MigrationRecord, Outcome
from whimbrel.model.radio import DelayFigures, Hears, LinkState, UserNote, UserReport
from whimbrel.workloads.catalogue import build_workload

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="moving containers needs root")]
SCRIPT = "<script>window.broken=1</script>"
IMAGE = '<img src=x onerror="window.broken=1">'


@pytest.fixture
def service(lab: Lab) -> Iterator[str]:
    """A small service on the first edge; its workload's name is no name but a script."""
    image = build_workload("demo").reference
    lab.controller.run_service("counter", image, EDGES[0], env=["MEMORY_MB=12"], ports=["7000/tcp"], workload=SCRIPT)
    yield "counter"
    for path in lab.failpoints.iterdir():
        path.unlink()
    while any(record.outcome is Outcome.RUNNING for record in lab.controller.migrations("counter", 10)):
        time.sleep(0.05)
    if any(status.spec.name == "counter" for status in lab.controller.services()):
        lab.controller.remove_service("counter")


def last(lab: Lab) -> MigrationRecord:
    return lab.controller.migrations("counter", 1)[0]


def row(page: Page, record: MigrationRecord) -> str:
    return f"#moves [data-id='{record.id}']"


def test_a_migration_is_shown_with_its_phases(lab: Lab, tab: Tab, service: str) -> None:
    page = tab.page
    for edge in EDGES[1:]:
        record = lab.controller.migrate(service, edge)
        assert record.outcome is Outcome.DONE
        shown = page.locator(row(page, record))
        expect(shown.locator(".chip")).to_have_text("done")
        expect(shown.locator(".name")).to_have_text(service)
        expect(shown.locator(".figure")).to_contain_text(re.compile(r"[0-9] m?s"))
        whole = sorted((one for one in record.phases if "." not in one.name), key=lambda one: one.start_ms)
        names = [text.split("\n")[0] for text in shown.locator(".phases li").all_inner_texts()]
        assert names == [one.name for one in whole] == ["preflight", "prepare", "rounds", "freeze", "switch", "finish"]
        assert shown.locator(".timeline .commit-line").count() == 1
    page.get_by_role("tab", name="Services").click()
    expect(page.locator("#services tr", has_text=service).locator("td").nth(1)).to_have_text(EDGES[2])
    page.get_by_role("tab", name="Log").click()
    expect(page.locator("#log")).to_contain_text(f"migration of {service}")


def test_a_service_is_migrated_from_the_page(lab: Lab, tab: Tab, service: str) -> None:
    page = tab.page
    page.get_by_role("tab", name="Services").click()
    page.get_by_role("button", name=f"Migrate {service}").click()
    dialog = page.locator("#dialog-migrate")
    expect(dialog.locator("[name=service]")).to_have_value(service)
    dialog.locator("[name=destination]").select_option(EDGES[1])
    dialog.locator("[name=strategy]").select_option("stop-and-copy")
    dialog.get_by_role("button", name="Dry run").click()
    expect(dialog.locator(".forecast")).to_contain_text(f"can move from {EDGES[0]} to {EDGES[1]} by stop-and-copy")
    assert last(lab).outcome is Outcome.DRY_RUN
    assert lab.controller.service(service).node == EDGES[0], "a dry run moves nothing"
    dialog.get_by_role("button", name="Migrate").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#services tr", has_text=service).locator("td").nth(1)).to_have_text(EDGES[1])
    record = last(lab)
    assert (record.outcome, record.strategy, record.destination) == (Outcome.DONE, "stop-and-copy", EDGES[1])
    expect(page.locator(row(page, record)).locator(".chip")).to_have_text("done")


def test_a_running_migration_is_cancelled_from_the_page(lab: Lab, tab: Tab, service: str) -> None:
    page = tab.page
    (lab.failpoints / "rounds").touch()
    lab.controller.start_migration(service, EDGES[2], reason=IMAGE)
    record = last(lab)
    shown = page.locator(row(page, record))
    expect(shown.locator(".figure")).to_contain_text("rounds")
    expect(page.locator(".arc-name", has_text=service)).to_be_visible()
    expect(shown.locator(".reason")).to_contain_text(IMAGE)
    shown.get_by_role("button", name="Cancel migration").click()
    page.locator("#dialog-confirm").get_by_role("button", name="Cancel migration").click()
    (lab.failpoints / "rounds").unlink()
    expect(shown.locator(".chip")).to_have_text("cancelled")
    assert lab.controller.service(service).node == EDGES[0]
    assert page.evaluate("window.broken") is None


def test_a_service_is_run_and_removed_from_the_page(lab: Lab, tab: Tab) -> None:
    page, image = tab.page, build_workload("simple").reference
    page.get_by_role("button", name="Run service").click()
    dialog = page.locator("#dialog-run")
    dialog.get_by_label("Name").fill("from-page")
    dialog.get_by_label("Image").fill("no-reference")
    dialog.locator("[name=node]").select_option(EDGES[1])
    dialog.get_by_role("button", name="Run").click()
    expect(dialog.get_by_role("alert")).to_contain_text("no-reference")
    tab.errors.clear()  # the browser notes an answer of 4xx by itself
    dialog.get_by_label("Image").fill(image)
    dialog.get_by_label("Ports").fill("7000/tcp")
    dialog.get_by_role("button", name="Run").click()
    expect(dialog).to_be_hidden()
    assert lab.controller.service("from-page").node == EDGES[1]
    page.get_by_role("tab", name="Services").click()
    page.get_by_role("button", name="Remove from-page").click()
    page.locator("#dialog-confirm").get_by_role("button", name="Remove").click()
    expect(page.locator("#services tr", has_text="from-page")).to_have_count(0)
    assert [status.spec.name for status in lab.controller.services()] == []


def test_scripts_in_names_are_text(lab: Lab, tab: Tab, service: str) -> None:
    page = tab.page
    lab.controller.tell(UserNote(user=USER, unix_s=time.time(), elapsed_s=0.0, kind="note", text=IMAGE))
    page.get_by_role("tab", name="Services").click()
    expect(page.locator("#services tr", has_text=service).locator("td").nth(3)).to_have_text(SCRIPT)
    page.get_by_role("tab", name="Log").click()
    expect(page.locator("#log")).to_contain_text(f"{service}")
    assert page.evaluate("window.broken") is None
    assert page.locator("main script, main img:not([src^='v1/'])").count() == 0


def report(number: int, x_m: float) -> UserReport:
    hears = (Hears(base_station=f"{PREFIX}-gw-1", rssi_dbm=-61.0, filtered_dbm=-61.0),)
    return UserReport(
        user=USER, number=number, unix_s=time.time(), elapsed_s=float(number), x_m=x_m, y_m=2.0, speed_m_per_s=1.0,
        serving=f"{PREFIX}-gw-1", state=LinkState.CONNECTED, hears=hears,
        delay=DelayFigures(requests=1, lost=0, mean_ms=7.5, p50_ms=7.5, max_ms=7.5),
    )  # fmt: skip


def test_a_user_is_found_and_followed(lab: Lab, tab: Tab) -> None:
    page = tab.page
    try:
        for number in range(1, 6):
            lab.controller.tell(report(number, 10.0 * number))
        page.get_by_label("Find a user").fill(USER)
        expect(page.locator("#user-title")).to_have_text(USER)
        expect(page.locator("#user-facts")).to_contain_text("50.0, 2.0 m")
        expect(page.locator("#delay-now")).to_have_text("7.5 ms")
        expect(page.locator("#rssi-now")).to_have_text("-61 dBm")
    finally:
        lab.controller.remove_user(USER)


def test_the_page_is_used_by_keys_alone(tab: Tab) -> None:
    page = tab.page
    page.locator("#tab-log").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#pane-services")).to_be_visible()
    expect(page.locator("#tab-services")).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator("#pane-experiments")).to_be_visible()
    page.locator("#open-run").focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#dialog-run")
    expect(dialog).to_be_visible()
    for _ in range(12):  # round and round, never out
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('#dialog-run')"
        )
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#open-run")).to_be_focused()
    page.locator("#map-live").focus()
    scale = page.locator("#map-scale .words")
    before = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert before != "none", "the focus is to be seen"
    assert scale.count() == 1
    for key in ("+", "ArrowLeft", "-", "0"):
        page.keyboard.press(key)


def test_nothing_is_cut_off_on_a_phone(chromium: Browser, address: str) -> None:
    for dark in (False, True):
        tab = Tab(chromium, dark=dark, size=PHONE)
        try:
            tab.page.goto(address)
            tab.page.wait_for_selector("#link-state[data-state=live]")
            assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            theme = tab.page.evaluate("document.documentElement.dataset.theme")
            assert theme == ("dark" if dark else "light")
            tab.page.get_by_role("button", name="Colours").click()  # light, whatever the system says
            assert tab.page.evaluate("document.documentElement.dataset.theme") == "light"
            assert tab.errors == []
        finally:
            tab.close()
