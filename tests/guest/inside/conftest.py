"""The migration tests' lab and service, smaller and with more patience: the guest's one processor is emulated."""

from __future__ import annotations

import os

import pytest

from tests.migrate import conftest as migration
from tests.migrate.conftest import PREFIX, lab, running
from whimbrel.lab import processes

__all__ = ["lab", "running"]

TOPOLOGY = f"""
name = "guest-tests"
prefix = "{PREFIX}-"
overlay_subnet = "10.77.0.0/16"
controller_subnet = "192.168.100.0/24"
[storage]
kind = "{os.environ.get("GUEST_STORAGE", "sshfs")}"
name = "{PREFIX}-nas"
subnet = "192.168.120.0/24"
[[edges]]
name = "{PREFIX}-1"
subnet = "192.168.101.0/24"
[[edges]]
name = "{PREFIX}-2"
subnet = "192.168.102.0/24"
[[gateways]]
name = "{PREFIX}-gw-1"
subnet = "192.168.111.0/24"
overlay_address = "10.77.0.1"
access_subnet = "10.99.0.0/24"
[[users]]
name = "ue-1"
attached = ["{PREFIX}-gw-1"]
"""


@pytest.fixture(scope="session", autouse=True)
def smaller_and_slower() -> None:
    migration.TOPOLOGY = TOPOLOGY
    migration.EDGES = migration.EDGES[:2]
    migration.GATEWAYS = migration.GATEWAYS[:1]
    migration.READY_TIMEOUT_S = 120.0
    migration.MORE_ENV = ("DIRTY_PAGES_PER_S=50",)  # rounds take seconds here, and shall still find little
    processes.ANSWER_TIMEOUT_S = 300.0
