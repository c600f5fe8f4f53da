"""A lab of two routers far apart, base stations that translate addresses, and servers of unequal power: services move
in it as in any other, and what the nodes say of themselves is true."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.migrate.conftest import PORT, PREFIX, Lab, Running, user_when_ready
from tests.migrate.test_failures_packets import Datagrams
from tests.migrate.test_strategies import state_is_right
from whimbrel.controller.client import ControllerClient
from whimbrel.controller.views import NodeView
from whimbrel.lab import commands
from whimbrel.model.migration import Outcome
from whimbrel.model.node import Tier
from whimbrel.network import netns
from whimbrel.runtime.capacity import cpu_used_s, node_cgroup, throttled_s
from whimbrel.workloads.catalogue import build_workload

pytestmark = pytest.mark.real
NAME = f"{PREFIX}w"
NEAR, FAR = f"{NAME}-near", f"{NAME}-far"
DELAY_MS = 15.0
CPUS = 0.4
TOPOLOGY = f"""
name = "wide-area-tests"
prefix = "{NAME}-"
overlay_subnet = "10.77.0.0/16"
controller_subnet = "192.168.100.0/24"
routers = [{{ name = "here" }}, {{ name = "there" }}]
[[links]]
between = ["here", "there"]
rate = "200mbit"
delay = "{DELAY_MS:g}ms"
[[edges]]
name = "{NEAR}"
subnet = "192.168.101.0/24"
at = "here"
cpus = {CPUS}
memory = "1GiB"
[[edges]]
name = "{FAR}"
subnet = "192.168.102.0/24"
at = "there"
tier = "cloud"
cpus = 1.0
[[gateways]]
name = "{NAME}-bs-1"
subnet = "192.168.111.0/24"
overlay_address = "10.77.0.1"
access_subnet = "10.99.0.0/24"
at = "here"
[[gateways]]
name = "{NAME}-bs-2"
subnet = "192.168.112.0/24"
overlay_address = "10.77.0.2"
access_subnet = "10.99.1.0/24"
at = "there"
nat = true
[[users]]
name = "ue-1"
attached = ["{NAME}-bs-2", "{NAME}-bs-1"]
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    base = tmp_path_factory.mktemp("wide")
    topology = base / "topology.toml"
    topology.write_text(TOPOLOGY)
    directory = Path(f"/var/lib/whimbrel-tests/{PREFIX}/wide")
    commands.lab_down(lab_dir=directory)
    commands.lab_up(topology, lab_dir=directory)
    try:
        with ControllerClient(f"unix:{directory}/controller.sock") as controller:
            yield Lab(directory, base / "failpoints", build_workload("demo").reference, controller)
    finally:
        commands.lab_down(lab_dir=directory)


@pytest.fixture(scope="module")
def moving(wide: Lab) -> Iterator[Running]:
    """The demo service near, talked to by a user behind the gateway that translates."""
    status = wide.controller.run_service(
        "roamer", wide.image, NEAR, env=["MEMORY_MB=8"], ports=[f"{PORT}/tcp", f"{PORT}/udp"]
    )
    user = user_when_ready(wide, status.spec.address.split("/")[0])
    try:
        yield Running(wide, "roamer", 8, user)
    finally:
        user.close()
        wide.controller.remove_service("roamer")


def node(wide: Lab, name: str) -> NodeView:
    return wide.controller.node(name)


def peers_of(pid: int) -> set[str]:
    """The remote addresses of the established TCP connections in a process's network namespace."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {socket.inet_ntoa(struct.pack("=I", int(words[2].split(":")[0], 16))) for words in lines if words[3] == "01"}


def test_connections_through_a_translating_gateway_survive_a_migration_to_and_fro(moving: Running) -> None:
    count, _ = moving.user.ask("count")
    for to in (FAR, NEAR):
        status = moving.lab.controller.service(moving.name)
        assert peers_of(status.pid) == {"10.77.0.2"}, "the service sees the gateway, not the user"
        datagrams = Datagrams(moving.user)
        with datagrams.flowing():
            record = moving.migrate(to)
        assert not record.error, record.error
        assert record.outcome is Outcome.DONE
        assert moving.node == to
        assert datagrams.unanswered() == set()
        assert moving.user.ask("count")[0] == count + 1, "same connection, same counter"
        count += 1
    assert state_is_right(moving)


def test_the_user_sees_the_delay_and_so_does_the_monitor(wide: Lab, moving: Running) -> None:
    begin = time.monotonic()
    moving.user.echo(b"there and back")
    assert (time.monotonic() - begin) * 1e3 >= 2 * DELAY_MS
    deadline = time.monotonic() + 20
    while (path := next(path for path in node(wide, NEAR).paths if path.to == FAR)).round_trip_ms is None:
        assert time.monotonic() < deadline, "nobody measures the way"
        time.sleep(0.1)
    assert path.round_trip_ms >= 2 * DELAY_MS
    assert path.rate_bps == 200e6


def test_nodes_tell_their_capacity_and_use(wide: Lab, moving: Running) -> None:
    deadline = time.monotonic() + 30
    while True:
        near, far = node(wide, NEAR), node(wide, FAR)
        assert near.resources is not None
        assert far.resources is not None
        measured = near.resources.computing_power and far.resources.computing_power
        in_use = near.resources.network_received_bps and near.service_use and near.service_use[0].cpus_used
        if measured and in_use:
            break
        assert time.monotonic() < deadline, "no benchmark is run, or no use seen"
        time.sleep(0.1)
    assert (near.tier, far.tier) == (Tier.EDGE, Tier.CLOUD)
    assert (near.resources.cpu_capacity, far.resources.cpu_capacity) == (CPUS, 1.0)
    assert near.resources.memory_capacity_bytes == 1 << 30
    assert near.resources.memory_available_bytes <= 1 << 30
    assert near.resources.network_capacity_bps == 200e6
    assert near.resources.computing_power == pytest.approx(CPUS * far.resources.computing_power)
    (use,) = near.service_use
    assert use.name == moving.name
    assert use.memory_bytes > 8 << 20
    assert near.resources.cpus_used >= use.cpus_used
    assert near.resources.memory_used_bytes >= use.memory_bytes
    again = wide.controller.measure_power(FAR)
    assert again.measured_unix_s > time.time() - 60
    stations = [view for view in wide.controller.nodes() if view.nat]
    assert [view.name for view in stations] == [f"{NAME}-bs-2"]


def test_a_service_on_a_weak_node_is_really_slowed(wide: Lab, moving: Running) -> None:
    """It works without a pause: the node's group does no more of it than its share, and is kept waiting."""
    group = node_cgroup(NEAR)
    argv = ["python3", "-c", "import time; end = time.time() + 1.5\nwhile time.time() < end: pass"]
    before_s, held_s, begin = cpu_used_s(group), throttled_s(group), time.monotonic()
    done = wide.controller.exec(moving.name, argv)
    passed_s = time.monotonic() - begin
    assert done.exit_code == 0, done.stderr
    assert throttled_s(group) > held_s
    assert (cpu_used_s(group) or 0) - (before_s or 0) <= CPUS * passed_s + 0.1


def test_the_status_names_the_link(wide: Lab) -> None:
    status = commands.lab_status(lab_dir=wide.directory)
    (link,) = status.links
    assert (link.between, link.delay_ms, link.rate_bps) == (("here", "there"), DELAY_MS, 200e6)
    assert link.alive
    if link.pid:
        assert netns.inode(Path(f"/proc/{link.pid}/ns/net")) == netns.inode(Path(f"/run/netns/{NAME}-here"))
