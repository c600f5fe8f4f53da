"""Containers of Docker move, and are Docker's own at the destination."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.migrate import docker_nodes
from tests.migrate.conftest import EDGES, PORT, Lab, Running, user_when_ready
from tests.migrate.docker_nodes import DockerNode
from tests.migrate.test_strategies import state_is_right
from whimbrel.model.migration import Outcome

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(docker_nodes.missing()), reason=docker_nodes.missing()),
]
DRIVERS = dict(zip(EDGES, ("overlay2", "overlay2", "vfs"), strict=True))


@pytest.fixture(scope="module")
def dockers(lab: Lab) -> Iterator[dict[str, DockerNode]]:
    nodes = {node: DockerNode(lab, node, driver) for node, driver in DRIVERS.items()}
    try:
        image = docker_nodes.archive()
        for node in nodes.values():
            node.load(image)
        yield nodes
    finally:
        for node in nodes.values():
            node.stop()


@pytest.fixture
def web(lab: Lab, dockers: dict[str, DockerNode]) -> Iterator[Running]:
    docker = dockers[EDGES[0]]
    docker(
        "run",
        "--detach",
        "--name",
        "web",
        "--network",
        "none",
        "--label",
        "colour=red",
        "--env",
        "MEMORY_MB=24",
        "demo",
    )
    status = lab.controller.adopt_service("web", "docker", "web", EDGES[0], ports=[f"{PORT}/tcp", f"{PORT}/udp"])
    user = user_when_ready(lab, status.spec.address.split("/")[0])
    try:
        yield Running(lab, "web", 24, user)
    finally:
        user.close()
        lab.disarm()
        lab.controller.remove_service("web")


def test_the_container_moves_and_is_dockers_own(web: Running, dockers: dict[str, DockerNode]) -> None:
    count, writes = web.user.ask("count")
    for target in (EDGES[1], EDGES[2], EDGES[0]):
        record = web.migrate(target)
        print(
            target,
            record.freeze_ms,
            record.total_ms,
            record.reason,
            *[(p.name, p.duration_ms) for p in record.phases],
            sep="\n  ",
        )
        assert (record.outcome, record.error) == (Outcome.DONE, "")
        next_count, next_writes = web.user.ask("count")
        assert next_count == count + 1
        assert next_writes > writes
        count, writes = next_count, next_writes
        assert state_is_right(web)
        assert web.user.echo(b"still there") == b"still there"
        docker = dockers[target]
        assert docker.names(all_of_them=False) == ["web"]
        assert "reason" not in record.reason
        for node in set(EDGES) - {target}:
            assert dockers[node].names() == []
            assert web.lab.leftovers(node, "web") == []
