"""A system container of LXC moves with its init and all its processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.migrate import lxc_nodes
from tests.migrate.conftest import EDGES, PORT, Lab, Running, user_when_ready
from tests.migrate.lxc_nodes import LxcNode
from tests.migrate.test_strategies import state_is_right
from whimbrel.model.migration import Outcome

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(lxc_nodes.missing()), reason=lxc_nodes.missing()),
]


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> Iterator[dict[str, LxcNode]]:
    made = {node: LxcNode(lab, node) for node in EDGES}
    try:
        yield made
    finally:
        for node in made.values():
            node.stop()


@pytest.fixture
def system(lab: Lab, nodes: dict[str, LxcNode]) -> Iterator[Running]:
    nodes[EDGES[0]].run("sys", memory_mb=24)
    status = lab.controller.adopt_service("sys", "lxc", "sys", EDGES[0], ports=[f"{PORT}/tcp", f"{PORT}/udp"])
    user = user_when_ready(lab, status.spec.address.split("/")[0])
    try:
        yield Running(lab, "sys", 24, user)
    finally:
        user.close()
        lab.disarm()
        lab.controller.remove_service("sys")


def test_a_system_container_moves(system: Running, nodes: dict[str, LxcNode]) -> None:
    count, writes = system.user.ask("count")
    for target in (EDGES[1], EDGES[0]):
        record = system.migrate(target)
        print(
            target,
            record.freeze_ms,
            record.total_ms,
            record.error,
            record.reason,
            *[(p.name, p.duration_ms) for p in record.phases],
            sep="\n  ",
        )
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        next_count, next_writes = system.user.ask("count")
        assert next_count == count + 1
        assert next_writes > writes
        count, writes = next_count, next_writes
        assert state_is_right(system)
        assert nodes[target].state("sys") == "RUNNING"
