"""The agent of a gateway that holds packets dies: nothing waits for it for ever, and nothing of its hold stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.migrate.conftest import GATEWAYS, Running
from tests.migrate.disturb import (
    DESTINATION,
    cancel_it,
    destination_is_clean,
    disturb,
    goes_on,
    kill_agent,
    runs_only_at,
    source_is_whole,
)
from whimbrel.lab import commands
from whimbrel.model.migration import Outcome
from whimbrel.network import netns
from whimbrel.network.names import BRIDGE


@dataclass
class Gateway:
    """The one that the user's packets pass."""

    running: Running
    name: str = GATEWAYS[0]

    def kill(self) -> None:
        kill_agent(self.running.lab, self.name)

    def queue_bytes(self) -> list[str]:
        """Room for waiting packets: of the overlay's bridge, and what is usual."""
        where = commands.node_namespace(self.name, lab_dir=self.running.lab.directory)
        settings = [f"net/ipv4/neigh/{name}/unres_qlen_bytes" for name in (BRIDGE, "lo")]
        return [netns.call(where, lambda setting=setting: netns.read_sysctl(setting)) for setting in settings]


@pytest.fixture
def gateway(running: Running) -> Iterator[Gateway]:
    gateway = Gateway(running)
    yield gateway
    if running.lab.agent_pid(gateway.name) == 0:
        running.lab.restart_agent(gateway.name)


@pytest.mark.parametrize("point", ["freeze.hold", "freeze.holding"])
def test_killed_before_it_holds(running: Running, gateway: Gateway, point: str) -> None:
    """Also while pages cross meanwhile, as they do where gateways are far."""
    count, _ = running.user.ask("count")
    record = disturb(running, point, gateway.kill)
    assert record.outcome is Outcome.ROLLED_BACK
    assert gateway.name in record.error
    source_is_whole(running, count)
    destination_is_clean(running)


def test_killed_while_it_holds(running: Running, gateway: Gateway) -> None:
    """The hold is the kernel's, and the announcement from the new place ends it."""
    count, _ = running.user.ask("count")
    assert disturb(running, "freeze.pages", gateway.kill).outcome is Outcome.DONE
    count = goes_on(running, count)
    runs_only_at(running, DESTINATION)
    running.lab.restart_agent(gateway.name)
    queue, usual = gateway.queue_bytes()
    assert queue == usual, "the next agent takes the room back that its forerunner made"
    goes_on(running, count)


def test_killed_while_it_holds_and_rolled_back(running: Running, gateway: Gateway) -> None:
    """So does the announcement from the old place."""
    count, _ = running.user.ask("count")

    def strike() -> None:
        gateway.kill()
        cancel_it(running)

    assert disturb(running, "freeze.pages", strike).outcome is Outcome.CANCELLED
    source_is_whole(running, count)
    destination_is_clean(running)
