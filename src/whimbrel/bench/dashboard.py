"""`whimbrel bench dashboard`: what the page costs a browser while a thousand users walk.

Real: the controller, its event stream, the page, and Chromium, whose own counters are read (DevTools protocol,
`Performance.getMetrics`). Made up: users and agents (`bench.crowd`). Main-thread work is what all tasks of the page's
main thread took, script, style, layout and painting together, by the clock; "processor" is what they had of a
processor, which is less where others want it, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from whimbrel.bench import table
from whimbrel.bench.report import FAIL, PASS, machine
from whimbrel.client.outage import median
from whimbrel.model.errors import Refused, StepFailed

USERS, SITES = 1000, 25
REPORT_EVERY_S = 0.25
"""As often as the stream tells of users: every event has them all."""
PROMISED_WORK_MS_PER_S, PROMISED_PAINT_MS = 100.0, 1000.0
CHOSEN = "ue-1"
DRAWN = "document.getElementById('chart-delay').toDataURL()"
LOADS = 5
SETTLE_S = 4.0
READY_S = 60.0
SIZE = {"width": 1440, "height": 900}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PARTS = {"script": "ScriptDuration", "style": "RecalcStyleDuration", "layout": "LayoutDuration"}
HEADINGS = ("users", "nodes", "n", "first paint", "worst", "work per s", "processor", "script", "style", "layout",
            "users per s", "heap", "promised")  # fmt: skip


def browser_program() -> str:
    """Where the distribution's browser is. Raises Refused."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise Refused("this needs Chromium: run `scripts/setup --engines`, or `apt-get install chromium`")


@contextlib.contextmanager
def crowd(*, users: int = USERS, sites: int = SITES, report_every_s: float = REPORT_EVERY_S) -> Iterator[str]:
    """A controller with that many users, in a process of its own; its address. Raises StepFailed."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-crowd-") as directory:
        argv = [sys.executable, "-m", "whimbrel.bench.crowd", "--directory", directory, "--users", str(users)]
        argv += ["--sites", str(sites), "--report-every", str(report_every_s)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                said = process.communicate(timeout=READY_S)[1].strip().splitlines()
                raise StepFailed(f"the region of made-up users did not start: {said[-1] if said else 'no word'}")
            yield address
        finally:
            process.terminate()
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window, driven by Playwright. Raises Refused."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Refused("this needs Playwright: `make setup` installs it with the other tools of developers") from error
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to be root otherwise
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser_program(), args=arguments)
        try:
            yield running
        finally:
            running.close()


def first_paint_ms(running: Any, address: str) -> float:
    """From the navigation's start to the first contentful paint, with an empty cache."""
    context = running.new_context(viewport=SIZE)
    try:
        page = context.new_page()
        page.goto(address)
        return float(_until(page, "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
    finally:
        context.close()


def work(running: Any, address: str, *, users: int, seconds: float) -> dict[str, float]:
    """What the page's main thread did, in ms for each second; how many users' news came; errors in its console."""
    context = running.new_context(viewport=SIZE)
    try:
        page = context.new_page()
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        _until(page, f"document.getElementById('fact-users').textContent === '{users:,}'")
        page.locator("#find-user").fill(CHOSEN)  # so that the charts are drawn, too
        _until(page, f"document.getElementById('user-title').textContent === '{CHOSEN}'")
        time.sleep(SETTLE_S)
        session = context.new_cdp_session(page)
        session.send("Performance.enable")
        drawn = page.evaluate(DRAWN)
        before, begin_s = _metrics(session), time.monotonic()
        page.wait_for_timeout(seconds * 1000)
        after, took_s = _metrics(session), time.monotonic() - begin_s
        if page.evaluate(DRAWN) == drawn:
            raise StepFailed(f"the chart of user {CHOSEN} stands still: its cost was not measured")
        if errors:
            raise StepFailed(f"the page reports an error: {errors[0]}")
        spent = {name: (after[key] - before[key]) * 1000 / took_s for name, key in PARTS.items()}
        return {
            "work_ms_per_s": (after["TaskDuration"] - before["TaskDuration"]) * 1000 / took_s,
            **{f"{name}_ms_per_s": value for name, value in spent.items()},
            "processor_ms_per_s": (after["ThreadTime"] - before["ThreadTime"]) * 1000 / took_s,
            "heap_bytes": after["JSHeapUsedSize"],
            "seconds": took_s,
        }
    finally:
        context.close()


def _until(page: Any, expression: str) -> Any:
    """What the expression comes to, once it is true. Playwright's own waiting needs `eval`, which the page forbids."""
    deadline = time.monotonic() + READY_S
    while not (found := page.evaluate(expression)):
        if time.monotonic() > deadline:
            raise StepFailed(f"the page does not come to: {expression}")
        time.sleep(0.05)
    return found


def _metrics(session: Any) -> dict[str, float]:
    return {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}


def run(console: Console, *, users: int = USERS, sites: int = SITES, seconds: float = 20.0) -> dict[str, Any]:
    """Load the page some times, then watch it for a while; prints a table. Raises Refused or StepFailed."""
    report_every_s = REPORT_EVERY_S
    browser_program()  # before anything is started
    with crowd(users=users, sites=sites, report_every_s=report_every_s) as address, browser() as running:
        version = running.version
        paints = [first_paint_ms(running, address) for _ in range(LOADS)]
        found = work(running, address, users=users, seconds=seconds)
    keeps = found["work_ms_per_s"] <= PROMISED_WORK_MS_PER_S and max(paints) <= PROMISED_PAINT_MS
    row = {"users": users, "nodes": sites * 2, "n": len(paints), "first_paint_ms": median(paints),
           "slowest_paint_ms": max(paints), "users_per_s": users / report_every_s, **found,
           "promised": PASS if keeps else FAIL}  # fmt: skip
    table.show(console, HEADINGS, [cells(row)])
    return {
        "machine": machine(),
        "parameters": {"browser": version, "report_every_s": report_every_s, **SIZE},
        "runs": [{"first_paint_ms": paints, **found}],
        "summary": [row],
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['users']:,}",
        str(row["nodes"]),
        str(row["n"]),
        table.ms(row["first_paint_ms"]),
        table.ms(row["slowest_paint_ms"]),
        *(table.ms(row[f"{name}_ms_per_s"]) for name in ("work", "processor", *PARTS)),
        f"{row['users_per_s']:.0f}",
        f"{row['heap_bytes'] / 1e6:.0f} MB",
        row["promised"],
    )
