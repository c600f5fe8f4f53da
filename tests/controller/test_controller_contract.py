"""One suite against the agents in memory and against real ones: what holds for both keeps the fake honest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes import FakeRegion
from live_controller import LiveController
from whimbrel.controller.client import ControllerClient
from whimbrel.lab import lab_down, lab_up
from whimbrel.model.errors import BadInput, WhimbrelError
from whimbrel.model.migration import Outcome, Progress
from whimbrel.model.node import Role
from whimbrel.model.service import ServiceState
from whimbrel.workloads.catalogue import build_workload

TOPOLOGY = """
name = "contract"
prefix = "tc-"
overlay_subnet = "10.77.0.0/16"
controller_subnet = "192.168.100.0/24"
[[edges]]
name = "tc-1"
subnet = "192.168.101.0/24"
[[edges]]
name = "tc-2"
subnet = "192.168.102.0/24"
[[gateways]]
name = "tc-gw"
subnet = "192.168.111.0/24"
overlay_address = "10.77.0.1"
access_subnet = "10.99.0.0/24"
[[users]]
name = "tc-ue"
attached = ["tc-gw"]
"""
LAB_DIR = Path("/var/lib/whimbrel-tests/contract")
NAME = "contract"
PYTHON = "/usr/bin/python3"


@dataclass
class Place:
    client: ControllerClient
    image: str

    def run(self, node: str = "", **more: str) -> str:
        return self.client.run_service(
            NAME, self.image, node or self.edges[0], env=["MEMORY_MB=4"], ports=["7000/udp"], **more
        ).spec.address  # type: ignore[arg-type]

    @property
    def edges(self) -> list[str]:
        return [node.name for node in self.client.nodes() if node.role is Role.EDGE]

    @property
    def gateway(self) -> str:
        return next(node.name for node in self.client.nodes() if node.role is Role.GATEWAY)


def in_memory(directory: Path) -> Iterator[Place]:
    with FakeRegion() as region:
        controller = LiveController(region, directory)
        controller.start()
        with controller.client() as client:
            yield Place(client, "oci:/x")
        controller.stop()


def real(directory: Path) -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("real agents need root")
    topology = directory / "topology.toml"
    topology.write_text(TOPOLOGY)
    image = build_workload("demo")
    lab_down(lab_dir=LAB_DIR)
    status = lab_up(topology, lab_dir=LAB_DIR)
    try:
        with ControllerClient(status.controller) as client:
            yield Place(client, image.reference)
    finally:
        lab_down(lab_dir=LAB_DIR)


@pytest.fixture(scope="module", params=["in memory", pytest.param("real", marks=pytest.mark.real)])
def region_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from (real if request.param == "real" else in_memory)(tmp_path_factory.mktemp("contract"))


@pytest.fixture
def place(region_of: Place) -> Iterator[Place]:
    yield region_of
    for service in region_of.client.services():
        region_of.client.remove_service(service.spec.name)


def test_nodes(place: Place) -> None:
    for node in place.client.nodes():
        assert node.up
        assert node.capabilities is not None
        assert node.capabilities.criu.count(".") >= 1
        assert node.resources is not None
        assert 0 < node.resources.memory_available_bytes <= node.resources.memory_total_bytes
        assert node.resources.disk_available_bytes > 0


def test_a_service_from_run_to_rm(place: Place) -> None:
    client, home = place.client, place.edges[0]
    address = place.run()
    assert address == "10.77.1.1/16"
    status = client.service(NAME)
    assert (status.node, status.state, status.migrations) == (home, ServiceState.RUNNING, 0)
    assert status.pid > 0
    assert status.mac.startswith("02:77:0a:4d:01:01")
    assert status.image_digest.startswith("sha256:")
    assert status.rss_bytes > 0
    assert status.processes >= 1
    assert status.started_unix_s > 1.6e9
    assert [one.spec for one in client.services()] == [status.spec]
    assert client.nodes()[0].services == (NAME,)
    assert isinstance(client.logs(NAME), str)
    client.remove_service(NAME)
    assert client.services() == []
    assert place.run() == address


def test_exec(place: Place) -> None:
    place.run()
    script = "import sys; print(*sys.argv[1:]); print('oh', file=sys.stderr); sys.exit(3)"
    result = place.client.exec(NAME, [PYTHON, "-c", script, "a b", "c"])
    assert (result.exit_code, result.stdout, result.stderr) == (3, "a b c\n", "oh\n")


def test_what_agents_and_controller_refuse(place: Place) -> None:
    client, edges = place.client, place.edges
    place.run(address="10.77.3.3")
    for image in ("docker:x", "nonsense"):
        with pytest.raises(BadInput):
            client.run_service("other", image, edges[1])
    with pytest.raises(BadInput, match="already used"):
        client.run_service("other", place.image, edges[1], address="10.77.3.3")
    with pytest.raises(BadInput, match="already used"):
        place.run(edges[1])
    for call in (client.service, client.logs, client.remove_service, lambda name: client.exec(name, ["ls"])):
        with pytest.raises(BadInput, match="there is no service 'nope'"):
            call("nope")
    for to in (edges[0], "nope", place.gateway):
        with pytest.raises(BadInput):
            client.migrate(NAME, to)
    assert [(one.spec.name, one.node) for one in client.services()] == [(NAME, edges[0])]


def test_dry_run(place: Place) -> None:
    place.run()
    pid = place.client.service(NAME).pid
    record = place.client.migrate(NAME, place.edges[1], dry_run=True)
    assert (record.outcome, record.error) == (Outcome.DRY_RUN, "")
    assert place.client.service(NAME).node == place.edges[0]
    assert place.client.service(NAME).pid == pid


@pytest.mark.parametrize("strategy", ["hybrid", "pre-copy"])
def test_a_migration(place: Place, strategy: str) -> None:
    client, (here, there, *_) = place.client, place.edges
    address = place.run()
    news: list[Progress] = []
    record = client.migrate(NAME, there, strategy, on_progress=news.append)
    assert (record.outcome, record.error) == (Outcome.DONE, "")
    assert (record.service, record.source, record.destination) == (NAME, here, there)
    assert record.strategy == strategy
    assert 0 < record.freeze_ms < record.total_ms
    assert record.bytes_sent > 0
    assert record.rss_bytes > 0
    assert record.phases
    assert [turn.n for turn in record.rounds] == list(range(1, len(record.rounds) + 1))
    assert all(one.migration == record.id for one in news)
    assert client.migration(record.id) == record
    status = client.service(NAME)
    assert (status.node, status.state, status.migrations) == (there, ServiceState.RUNNING, 1)
    assert status.spec.address == address
    assert client.exec(NAME, [PYTHON, "-c", "print(6 * 7)"]).stdout == "42\n"


def test_cancel_of_what_is_over(place: Place) -> None:
    place.run()
    record = place.client.migrate(NAME, place.edges[1])
    with pytest.raises(WhimbrelError, match="is over"):
        place.client.cancel(record.id)
