from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_region import Region, made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason="needs root for network namespaces"))


built = pytest.fixture(made, scope="module", name="built")


@pytest.fixture
def region(built: Region, tmp_path: Path) -> Iterator[Region]:
    """The nodes and their links are the module's, all that is made on them the test's."""
    try:
        built.begin(tmp_path)
        yield built
    finally:
        built.end()
