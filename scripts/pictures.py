#!/usr/bin/env python3
"""Makes the pictures of the pages that the documents show: `.venv/bin/python scripts/pictures.py`.

All that they show takes place: a lab with three sites, a user who walks between them and watches a film, the planner
that moves its service after it. Needs root, Chromium, and a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from playwright.sync_api import Browser, Page, Playwright, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from whimbrel.bench.dashboard import browser_program
from whimbrel.controller.client import ControllerClient
from whimbrel.lab import commands
from whimbrel.lab.session import lab_session
from whimbrel.model.application import Application
from whimbrel.model.errors import WhimbrelError
from whimbrel.model.migration import Outcome
from whimbrel.workloads.catalogue import build_workload

T = TypeVar("T")
DOCS = Path(__file__).resolve().parent.parent / "docs"
MOST_BYTES = 300_000
SITES = (("harbour", 0.0, 0.0), ("market", 60.0, 35.0), ("station", 120.0, 0.0))
WAY = ((4.0, 8.0), (60.0, 26.0), (116.0, 8.0))
USER = "anna"
MOVES, LONGEST_S = 3, 150.0
MOST_TRIES, SEEN_MS = 5, 400
LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def topology() -> str:
    text = (
        'name = "pictures"\nprefix = "pic-"\noverlay_subnet = "10.77.0.0/16"\ncontroller_subnet = "192.168.100.0/24"\n'
    )
    for name, _, _ in SITES:
        text += f'[[routers]]\nname = "site-{name}"\n'
    for (a, _, _), (b, _, _) in pairwise(SITES):
        text += f'[[links]]\nbetween = ["site-{a}", "site-{b}"]\ndelay = "2ms"\n'
    for number, (name, _, _) in enumerate(SITES, 1):
        text += f'[[edges]]\nname = "edge-{name}"\nsubnet = "192.168.10{number}.0/24"\nat = "site-{name}"\n'
        text += f'[[gateways]]\nname = "cell-{name}"\nsubnet = "192.168.11{number}.0/24"\nat = "site-{name}"\n'
        text += f'overlay_address = "10.77.0.{number}"\naccess_subnet = "10.99.{number}.0/24"\n'
    cells = ", ".join(f'"cell-{name}"' for name, _, _ in SITES)
    text += f'[[users]]\nname = "{USER}"\nattached = [{cells}]\n'
    stations = ", ".join(f'{{ name = "cell-{name}", x_m = {x}, y_m = {y} }}' for name, x, y in SITES)
    points = ", ".join(f"{{ x_m = {x}, y_m = {y} }}" for x, y in WAY)
    text += f"[radio]\nseed = 1\nhandover = {{ interruption_ms = 50.0 }}\nbase_stations = [{stations}]\n"
    text += (
        f'[[radio.users]]\nname = "{USER}"\ncourse = "there-and-back"\nspeed_m_per_s = 6.0\nwaypoints = [{points}]\n'
    )
    return text


@contextlib.contextmanager
def program(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", "whimbrel", *words], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def chromium(playwright: Playwright, folder: Path, namespace: Path | None = None) -> Browser:
    """Here, or in a network namespace."""
    executable = Path(browser_program())
    if namespace is not None:
        there = folder / "there"
        there.write_text(f'#!/bin/sh\nexec nsenter --net={shlex.quote(str(namespace))} {executable} "$@"\n')
        there.chmod(0o755)
        executable = there
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    return playwright.chromium.launch(executable_path=executable, args=arguments)


def page_of(browser: Browser, address: str, size: dict[str, int], dark: bool) -> Page:
    context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    return page


def keep(page: Page, name: str) -> None:
    path = DOCS / name
    page.screenshot(path=path)
    size = path.stat().st_size
    print(
        f"{path.relative_to(DOCS.parent)}  {size / 1000:.0f} kB{'  TOO LARGE' if size > MOST_BYTES else ''}", flush=True
    )


def wait(condition: Callable[[], T | None], what: str) -> T:
    """What it comes to. Raises WhimbrelError."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise WhimbrelError(f"waited {LONGEST_S:.0f} s in vain: {what}")


def watch_film(page: Page, address: str) -> None:
    """Log in, and see the first picture move."""

    def answers() -> bool:
        with contextlib.suppress(PlaywrightError):  # it has just been started
            page.goto(address)
            return True
        return False

    wait(answers, "the video service answers")
    page.get_by_label("User").fill("viewer")
    page.get_by_label("Password").fill("whimbrel")
    page.get_by_role("button", name="Log in").click()
    wait(lambda: page.evaluate("document.getElementById('film')?.currentTime > 1"), "the film plays")


def moves(controller: ControllerClient, outcome: Outcome) -> int:
    return sum(one.outcome is outcome for one in controller.migrations("", 50))


def under_way(page: Page) -> str:
    """The id of the migration that the page shows as running, with its arc and as "1 moving"; "" for none."""
    return str(page.evaluate(
        """() => {
          const row = document.querySelector('#moves .progress:not([hidden])')?.closest('[data-id]');
          const arc = document.querySelector('.arc-name:not([data-bad])');
          const moving = document.getElementById('fact-moving').textContent;
          return row && arc && moving === '1' ? row.dataset.id : '';
        }"""
    ))  # fmt: skip


def keep_moving(page: Page, name: str) -> None:
    """A picture of a migration that runs, before it and after it: else of the next one."""
    for _ in range(MOST_TRIES):
        moving = wait(lambda: under_way(page), "a migration is under way")
        page.wait_for_timeout(SEEN_MS)  # its first phases are drawn
        keep(page, name)
        if under_way(page) == moving:
            return
        print(f"{name}: it was over too soon, again", flush=True)
    raise WhimbrelError(f"{name}: no migration of {MOST_TRIES} lasted long enough for a picture")


def settled(page: Page) -> bool:
    """Nothing moves, the newest migration is open with its timeline, and the newest decisions were carried out."""
    return bool(page.evaluate(
        """(least) => {
          const newest = document.querySelector('#moves .move');
          const states = [...document.querySelectorAll('#decisions .chip')].slice(0, least);
          return document.getElementById('fact-moving').textContent === '0'
            && newest?.querySelector('.chip').textContent === 'done' && !!newest.querySelector('.timeline')
            && states.length === least && states.every((one) => one.textContent === 'done');
        }""",
        MOVES,
    ))  # fmt: skip


def plays(page: Page) -> bool:
    """The film has a picture, and goes on."""
    said = "(() => { const film = document.getElementById('film'); return [film.readyState, film.currentTime]; })()"
    _, before_s = page.evaluate(said)
    page.wait_for_timeout(500)
    ready, after_s = page.evaluate(said)
    return bool(ready >= 3 and after_s > before_s)


def take(lab_dir: Path, folder: Path) -> None:
    file = folder / "topology.toml"
    file.write_text(topology())
    image = build_workload("videoapp")
    with (
        lab_session(print, topology=file, lab_dir=lab_dir) as status,
        ControllerClient(status.controller) as controller,
    ):
        controller.offer(Application(name="film", image=image.reference, ports=("8080/tcp",), workload="videoapp",
                                     tasks_per_s=50.0))  # fmt: skip
        for name, _, _ in SITES[1:]:
            controller.run_service(
                f"beside-{name}", build_workload("simple").reference, f"edge-{name}", ports=["7000/tcp"]
            )
        walk = ("ue", "--topology", str(file), "--user", USER, "--application", "film",
                "--report-to", status.controller,
                "--decide", "network", "--out", "/dev/null")  # fmt: skip
        with (
            program("dashboard", "--controller", status.controller, "--port", "0") as shown,
            program(*walk),
            sync_playwright() as playwright,
        ):
            assert shown.stdout is not None
            address = shown.stdout.readline().split()[1]
            here = chromium(playwright, folder)
            light, dark, phone = (
                page_of(here, address, size, dark=is_dark)
                for size, is_dark in ((LAPTOP, False), (LAPTOP, True), (PHONE, False))
            )
            there = chromium(playwright, folder, commands.node_namespace(USER, lab_dir=lab_dir))
            service = wait(
                lambda: next((one for one in controller.services() if one.spec.workload == "videoapp"), None),
                "the user has its service",
            )
            film = page_of(there, "about:blank", {"width": 1000, "height": 720}, dark=False)
            watch_film(film, f"http://{service.spec.address.split('/')[0]}:8080/")
            begun = moves(controller, Outcome.DONE)
            wait(lambda: moves(controller, Outcome.DONE) >= begun + MOVES, f"the service was moved {MOVES} times")
            wait(lambda: plays(film), "the film goes on after the moves")
            keep(film, "videoapp.png")  # one session, one page, three servers
            keep_moving(light, "dashboard.png")
            keep_moving(phone, "dashboard-phone.png")
            dark.locator("#tab-decisions").click()
            wait(lambda: settled(dark), f"the newest {MOVES} decisions are carried out, and nothing moves")
            keep(dark, "dashboard-dark.png")
            here.close()
            there.close()
        with contextlib.suppress(WhimbrelError):  # it may be moving: it goes with the lab
            controller.remove_user(USER)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab-dir", type=Path, default=Path("/var/lib/whimbrel/pictures"))
    told = parser.parse_args()
    if os.geteuid() != 0:
        print("pictures: a lab needs root", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        try:
            take(told.lab_dir, Path(folder))
        except WhimbrelError as error:
            print(f"pictures: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
