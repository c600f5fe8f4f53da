from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeRegion
from live_controller import LiveController

from whimbrel.controller.client import ControllerClient


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveController]:
    with FakeRegion() as region:
        controller = LiveController(region, Path(tmp_path_factory.mktemp("ctl")))
        controller.start()
        yield controller
        controller.stop()


@pytest.fixture
def region(live: LiveController) -> Iterator[FakeRegion]:
    """The fake agents behind the controller, fresh."""
    live.region.reset()
    yield live.region
    live.region.reset()


@pytest.fixture
def client(live: LiveController, region: FakeRegion) -> Iterator[ControllerClient]:
    with live.client() as client:
        yield client
