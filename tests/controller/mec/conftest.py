from collections.abc import Iterator

import httpx
import pytest
from mec_server import Inbox, MecServer, serving

from fakes import FakeRegion


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MecServer]:
    with serving(tmp_path_factory.mktemp("mec")) as server:
        yield server


@pytest.fixture
def region(server: MecServer) -> Iterator[FakeRegion]:
    server.region.reset()
    yield server.region
    server.region.reset()


@pytest.fixture
def http(server: MecServer, region: FakeRegion) -> Iterator[httpx.Client]:
    with server.http() as http:
        yield http


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with Inbox() as inbox:
        yield inbox
