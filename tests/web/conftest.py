"""A lab of its own for the pages' tests, and browsers. Each file has a browser of its own: Playwright keeps an event
loop running for as long as it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from tests.web.browser import Tab, base_of, dashboard, launched, program
from whimbrel.controller.client import ControllerClient
from whimbrel.lab import commands
from whimbrel.migrate.failpoints import inherited

PREFIX = os.environ.get("WHIMBREL_TEST_LAB", "tw") + "w" + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
EDGES = (f"{PREFIX}-1", f"{PREFIX}-2", f"{PREFIX}-3")
USER = "ue-1"
TOPOLOGY = f"""
name = "page-tests-{PREFIX}"
prefix = "{PREFIX}-"
overlay_subnet = "10.77.0.0/16"
controller_subnet = "192.168.100.0/24"
edges = [
    {{ name = "{EDGES[0]}", subnet = "192.168.101.0/24" }},
    {{ name = "{EDGES[1]}", subnet = "192.168.102.0/24" }},
    {{ name = "{EDGES[2]}", subnet = "192.168.103.0/24" }},
]
[[gateways]]
name = "{PREFIX}-gw-1"
subnet = "192.168.111.0/24"
overlay_address = "10.77.0.1"
access_subnet = "10.99.0.0/24"
[[gateways]]
name = "{PREFIX}-gw-2"
subnet = "192.168.112.0/24"
overlay_address = "10.77.0.2"
access_subnet = "10.99.1.0/24"
[[users]]
name = "{USER}"
attached = ["{PREFIX}-gw-1", "{PREFIX}-gw-2"]
"""


@dataclass
class Lab:
    directory: Path
    failpoints: Path
    controller: ControllerClient

    @property
    def address(self) -> str:
        return f"unix:{self.directory}/controller.sock"

    @property
    def user_namespace(self) -> Path:
        return commands.node_namespace(USER, lab_dir=self.directory)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    program()
    if os.geteuid() != 0:
        pytest.skip("moving containers needs root")
    base = tmp_path_factory.mktemp("page-lab")
    topology, failpoints = base / "topology.toml", base / "failpoints"
    topology.write_text(TOPOLOGY)
    failpoints.mkdir()
    directory = Path(f"/var/lib/whimbrel-tests/{PREFIX}/pages")
    commands.lab_down(lab_dir=directory)
    with inherited(failpoints):
        commands.lab_up(topology, lab_dir=directory)
    try:
        with ControllerClient(f"unix:{directory}/controller.sock") as controller:
            yield Lab(directory, failpoints, controller)
    finally:
        commands.lab_down(lab_dir=directory)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    program()
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def chromium(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with launched(playwright, tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def address(lab: Lab) -> Iterator[str]:
    """The dashboard of the lab's controller."""
    with dashboard(lab.address) as found:
        yield found


@pytest.fixture
def tab(chromium: Browser, address: str) -> Iterator[Tab]:
    """The dashboard, live. Afterwards its console is empty, and it has asked nobody but the controller."""
    opened = Tab(chromium)
    opened.page.goto(address)
    opened.page.wait_for_selector("#link-state[data-state=live]")
    yield opened
    try:
        assert opened.errors == []
        assert [url for url in opened.outside if not url.startswith(base_of(address))] == []
    finally:
        opened.close()
