"""The guest, made and booted once for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.image import Unavailable, build
from tests.guest.machine import Guest
from whimbrel.workloads.builder import CACHE
from whimbrel.workloads.catalogue import build_workload


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    try:
        image = build()
    except Unavailable as error:
        pytest.skip(str(error))
    build_workload("demo")
    images = [Path(CACHE, f"demo{suffix}") for suffix in ("", ".client", ".key")]
    guest = Guest(image, tmp_path_factory.mktemp("guest"), images)
    try:
        yield guest
    finally:
        guest.close()
