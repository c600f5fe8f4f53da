"""Chromium of the distribution, driven by Playwright, here or in a network namespace."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect

from live_controller import LiveController

LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
START_S = 30
WAIT_S = 30
expect.set_options(timeout=WAIT_S * 1e3)  # a service is started beside all other tests


def program() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("Chromium is not installed: scripts/setup --engines")
    return found


@contextlib.contextmanager
def launched(playwright: Playwright, folder: Path, namespace: Path | None = None) -> Iterator[Browser]:
    """A browser without a window; with a `namespace` all that it talks to, it talks to from there."""
    executable = Path(program())
    if namespace is not None:
        wrapper = folder / "chromium-there"
        wrapper.write_text(f'#!/bin/sh\nexec nsenter --net={shlex.quote(str(namespace))} {executable} "$@"\n')
        wrapper.chmod(0o755)
        executable = wrapper
    # Root's Chromium starts only without its sandbox; the films play without a click, as on a page that one has used.
    arguments = ["--autoplay-policy=no-user-gesture-required", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    browser = playwright.chromium.launch(executable_path=executable, args=arguments)
    try:
        yield browser
    finally:
        browser.close()


class Tab:
    """A page, and what its console complained of."""

    def __init__(self, browser: Browser, *, dark: bool = False, size: dict[str, int] = LAPTOP) -> None:
        self.context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light")  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on(
            "console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.outside.append(request.url))

    def close(self) -> None:
        self.context.close()


def until(page: Page, expression: str, argument: object = None) -> None:
    """Wait for a function of the page to be true. Playwright's own waiting needs `eval`, which the pages forbid."""
    deadline = time.monotonic() + WAIT_S
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, f"waited {WAIT_S} s in vain: {expression}"
        time.sleep(0.05)


def base_of(address: str) -> str:
    """Of the dashboard's address, without its key."""
    return address.partition("?")[0]


@contextlib.contextmanager
def dashboard_of(live: LiveController) -> Iterator[str]:
    """A controller, started for the block, and its dashboard; the address for a browser."""
    live.start()
    try:
        with dashboard(live.address) as found:
            yield found
    finally:
        live.stop()


@contextlib.contextmanager
def dashboard(controller: str) -> Iterator[str]:
    """`whimbrel dashboard` in front of a controller; the address for a browser."""
    argv = [sys.executable, "-m", "whimbrel", "dashboard", "--controller", controller, "--port", "0"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("dashboard: http://127.0.0.1:"), line + process.communicate(timeout=START_S)[1]
        yield line.split()[1]
    finally:
        process.terminate()
        said = process.communicate(timeout=START_S)[1]
    assert said == ""
