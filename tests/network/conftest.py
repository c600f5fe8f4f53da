from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_region import TOPOLOGY, Region

from whimbrel.lab import build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="needs root for network namespaces"))


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    made = None
    try:
        made = Region(tmp_path)
        yield made
    finally:
        if made is not None:
            made.close()
        build.remove(TOPOLOGY)
